"""Make the set of real images that generated ones are compared with: rendered, or from a folder."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from quantwatt.artifacts import images
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.data import photographs
from quantwatt.jobs import command


def rendered(renderer, seed, n):
    """Batches (images uint8 [b, h, w, 3], captions, seeds) of `n` images.

    Args:
        renderer: "shapes", or "digits" for those of scikit-learn, drawn without replacement.
    Raises:
        DataError: no such renderer, or it has fewer images.
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
        raise DataError(f"there is no renderer {renderer!r}; 'shapes' and 'digits' are.")
    yield pictures, captions, [None] * n


def from_folder(folder, height, width, n=None, seed=0, record=None):
    """Batches of one image of the pictures in a folder and its subfolders, or in a ZIP archive, sorted by path.

    They are read as `quantwatt.data.photographs` says.

    Args:
        folder: where the files are; may be a ZIP archive.
        height, width: of the images to make, in pixels.
        n: how many to take, drawn without replacement, as the first ones of a folder may be of its first classes; None
            for all.
        seed: of that drawing.
        record: mapping that gets, at the end, how the pictures were read.
    Raises:
        DataError: a file is not an image, there are too few, or all are of one single colour.
    """
    with photographs.opened(folder) as (files, open_file, reading):
        if len(files) < (n or 1):
            left = f" ({reading.left_out.total()} other files)" if reading.left_out else ""
            raise DataError(f"{folder}: {len(files)} image files{left}, but {n or 'at least one'} asked for.")
        chosen = range(len(files)) if n is None else np.random.default_rng(seed).permutation(len(files))[:n]
        for name in (files[i] for i in sorted(chosen)):
            yield photographs.read(open_file, name, (width, height), reading)[None], [None], [None]
        if reading.counts["one_colour"] + reading.counts["alpha_only"] == reading.read:
            raise DataError(f"{folder}: all {reading.read} pictures are of one single colour ({files[0]}, for one).")
        for sentence in reading.sentences():
            print(sentence, file=sys.stderr)
        if record is not None:
            record.update(reading.described())


def make_reference(name, settings, folder):
    """Write the reference image set `name` into `folder`; returns its manifest.

    Args:
        settings: {"renderer": "shapes" or "digits", "seed": int, "images": int}, or
            {"folder": PATH, "height": int, "width": int, "images": int or None for all, "seed": int}.
    """
    reading = {}
    if settings.get("folder"):
        if not (settings.get("height") and settings.get("width")):
            raise DataError(f"reference {name}: a folder needs the 'height' and 'width' to bring its images to.")
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
        "reading": reading,  # filled while the images are read
        "provenance": provenance(("numpy", "pillow")),
    }
    return images.write_images(folder, batches, fields, real=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="the reference's name, shown beside every figure")
    parser.add_argument(
        "--settings",
        required=True,
        type=json.loads,
        help='JSON: {"renderer": "shapes", "seed": 777, "images": 2048} or '
        '{"folder": PATH, "height": 64, "width": 64, "images": null}',
    )
    parser.add_argument("--output", required=True, help="manifest.json; the images go beside it")
    args = parser.parse_args(argv)
    make_reference(args.name, args.settings, Path(args.output).parent)


if __name__ == "__main__":
    command.run(main)
