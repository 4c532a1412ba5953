"""File names of the images of a set, and the parts of a set that separate jobs generate.

An image's file name depends on its number in the whole set, and parts begin at whole batches: a set has the same files
under the same names, however many parts it is generated in.
"""

from collections.abc import Mapping
from typing import Any

from quantwatt.artifacts.errors import DataError

SHARD_IMAGES = 256  # images in one folder


def image_name(number: int) -> str:
    """The file name of an image, relative to its set's folder."""
    return f"shard-{number // SHARD_IMAGES:03d}/{number:05d}.png"


def latents_name(image: str) -> str:
    """The file of an image's latents, beside the image."""
    return image.removesuffix(".png") + ".npy"


def part_number(first: int) -> str:
    """The digits in the name of the part whose first image has this number."""
    return f"{first:05d}"


def part_name(first: int) -> str:
    """The manifest's name for the part of a set whose first image has this number."""
    return f"part-{part_number(first)}.json"


def parts(sampling: Mapping[str, Any], images_per_job: int) -> list[range]:
    """The ranges of image numbers that jobs generate.

    Every part except the last has `images_per_job` images, rounded up to whole batches, independent of the set's size:
    when a set grows, its full parts are kept.

    Args:
        sampling: {"images", "batch_size", ...}.
    Returns:
        list of range.
    """
    size = _part_size(sampling, images_per_job)
    return [range(first, min(first + size, sampling["images"])) for first in range(0, sampling["images"], size)]


def count(sampling: Mapping[str, Any], images_per_job: int) -> int:
    """The number of ranges that `parts` returns."""
    return -(-sampling["images"] // _part_size(sampling, images_per_job))


def _part_size(sampling, images_per_job):
    """The number of images of a full part, a multiple of the batch size."""
    batch = sampling["batch_size"]
    return -(-images_per_job // batch) * batch


def check_start(part: range, batch_size: int) -> None:
    """Refuse a part that begins inside a batch.

    Raises:
        DataError: the part's batches would differ from those of the whole set.
    """
    if part.start % batch_size:
        raise DataError(
            f"a part of an image set begins at image {part.start}, inside a batch of {batch_size}: images could differ "
            f"from those of the whole set; begin at a multiple of {batch_size}."
        )
