"""Make the reference set, the real images that generated images are compared with: rendered or from a folder."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantwatt.artifacts import images
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.data import photographs
from quantwatt.jobs import command

Batch = tuple[np.ndarray, Sequence[str | None], Sequence[int | None]]  # images uint8 [b, h, w, 3], captions, seeds


def rendered(renderer: str, seed: int, n: int) -> Iterator[Batch]:
    """Batches (images uint8 [b, h, w, 3], captions, seeds) of `n` images.

    Args:
        renderer: "shapes", or "digits" for scikit-learn's digits, drawn without replacement.
    Raises:
        DataError: there is no such renderer, or it has fewer than `n` images.
    """
    if renderer == "shapes":
        from quantwatt.data import scenes

        pictures, captions = scenes.dataset(n, seed)
    elif renderer == "digits":
        from quantwatt.data import digits

        if n > digits.COUNT:
            raise DataError(f"scikit-learn has {digits.COUNT} digits, and {n} are asked for.")
        chosen = np.random.default_rng(seed).permutation(digits.COUNT)[:n]
        pictures, captions = (arrays[chosen] for arrays in digits.dataset())
        captions = [str(digit) for digit in captions]
    else:
        raise DataError(f"there is no renderer {renderer!r}; use 'shapes' or 'digits'.")
    yield pictures, captions, [None] * n


def from_folder(
    folder: str | Path,
    height: int,
    width: int,
    n: int | None = None,
    seed: int = 0,
    record: dict[str, Any] | None = None,
) -> Iterator[Batch]:
    """Batches of one image from a folder and its subfolders, or from a ZIP archive, sorted by path.

    `quantwatt.data.photographs` reads the pictures.

    Args:
        folder: path of the folder or of the ZIP archive.
        height, width: size of the returned images, in pixels.
        n: number of images, drawn without replacement because the first files may all be of the same class; None
            for all.
        seed: seed of the draw.
        record: mapping that receives, at the end, how the pictures were read.
    Raises:
        DataError: a file is not an image, there are too few images, or every image has only one colour.
    """
    with photographs.opened(folder) as (files, open_file, reading):
        if len(files) < (n or 1):
            left = f" ({reading.left_out.total()} other files)" if reading.left_out else ""
            raise DataError(f"{folder}: {len(files)} image files{left}, but {n or 'at least one'} asked for.")
        chosen = range(len(files)) if n is None else np.random.default_rng(seed).permutation(len(files))[:n]
        for name in (files[i] for i in sorted(chosen)):
            yield photographs.read(open_file, name, (width, height), reading)[None], [None], [None]
        if reading.counts["one_colour"] + reading.counts["alpha_only"] == reading.read:
            raise DataError(f"{folder}: all {reading.read} pictures have only one colour (for example {files[0]}).")
        for sentence in reading.sentences():
            print(sentence, file=sys.stderr)
        if record is not None:
            record.update(reading.described())


def make_reference(name: str, settings: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Write the reference image set `name` into `folder`, and return its manifest.

    Args:
        settings: {"renderer": "shapes" or "digits", "seed": int, "images": int}, or
            {"folder": PATH, "height": int, "width": int, "images": int or None for all, "seed": int}.
    """
    reading = {}
    if settings.get("folder"):
        if not (settings.get("height") and settings.get("width")):
            raise DataError(f"reference {name}: a folder needs the 'height' and 'width' of the images to make.")
        resize = f"PIL bicubic and central crop to {settings['height']}x{settings['width']}"
        size, drawn = (settings["height"], settings["width"]), (settings.get("images"), settings.get("seed") or 0)
        batches = from_folder(settings["folder"], *size, *drawn, record=reading)
    else:
        resize = "none"
        batches = rendered(settings["renderer"], settings["seed"], settings["images"])
    fields = {
        "reference": name,
        "source": settings,
        "resize": resize,
        "reading": reading,  # `from_folder` fills it while images are written
        "provenance": provenance(("numpy", "pillow")),
    }
    return images.write_images(folder, batches, fields, real=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="the reference's name, shown with every score")
    parser.add_argument(
        "--settings",
        required=True,
        type=json.loads,
        help='JSON: {"renderer": "shapes", "seed": 777, "images": 2048} or '
        '{"folder": PATH, "height": 64, "width": 64, "images": null}',
    )
    parser.add_argument("--output", required=True, help="manifest.json to write; the images go to the same folder")
    args = parser.parse_args(argv)
    make_reference(args.name, args.settings, Path(args.output).parent)


if __name__ == "__main__":
    command.run(main)
