"""Captions of MS-COCO: one caption per image."""

import json
import zlib

from quantwatt.artifacts.errors import DataError


def draw(annotations: bytes, images: int, seed: int = 0) -> list[str]:
    """Select images and one caption of each, in the order of the images' numbers.

    A checksum of the image's number and the seed selects the images and the caption of an image: the selection is the
    same on every machine.

    Args:
        annotations: bytes of COCO's captions_*.json, {"annotations": [{"id", "image_id", "caption"}, ...]}.
        images: number of images to select.
    Returns:
        list of str without line breaks.
    Raises:
        DataError: the file does not have COCO's structure, or has fewer images.
    """
    captions = {}
    try:
        for annotation in sorted(json.loads(annotations)["annotations"], key=lambda entry: entry["id"]):
            captions.setdefault(annotation["image_id"], []).append(" ".join(annotation["caption"].split()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"these are not COCO's captions ({type(error).__name__}: {error}).") from error
    if len(captions) < images:
        raise DataError(f"the captions are of {len(captions)} images, and {images} are asked for.")
    drawn = {image: zlib.crc32(f"{seed} {image}".encode()) for image in captions}
    chosen = sorted(sorted(drawn, key=lambda image: (drawn[image], image))[:images])
    return [captions[image][drawn[image] // images % len(captions[image])] for image in chosen]
