"""Make the set of real images that generated ones are compared with: rendered, or from a folder."""

import argparse
import contextlib
import json
import zipfile
from pathlib import Path

import numpy as np

from quantwatt import command, images
from quantwatt.manifest import DataError, provenance

SUFFIXES = (".png", ".jpg", ".jpeg")


def rendered(renderer, seed, n):
    """Batches (images uint8 [b, h, w, 3], captions, seeds) of `n` images.

    Args:
        renderer: "shapes", or "digits" for those of scikit-learn, drawn without replacement.
    Raises:
        DataError: no such renderer, or it has fewer images.
    """
    if renderer == "shapes":
        from quantwatt import scenes

        pictures, captions = scenes.dataset(n, seed)
    elif renderer == "digits":
        from quantwatt import digits

        if n > digits.COUNT:
            raise DataError(f"scikit-learn has {digits.COUNT} digits, and {n} are asked for.")
        chosen = np.random.default_rng(seed).permutation(digits.COUNT)[:n]
        pictures, captions = (found[chosen] for found in digits.dataset())
        captions = [str(digit) for digit in captions]
    else:
        raise DataError(f"there is no renderer {renderer!r}; 'shapes' and 'digits' are.")
    yield pictures, captions, [None] * n


def from_folder(folder, height, width, n=None, seed=0):
    """Batches of one image of the PNG and JPEG files in a folder and its subfolders, sorted by path.

    The shorter side is brought to size by PIL's bicubic filter, the longer one is cut evenly at both ends.

    Args:
        folder: where the files are; may be a ZIP archive.
        height, width: of the images to make, in pixels.
        n: how many to take, drawn without replacement, as the first ones of a folder may be of its first classes; None
            for all.
        seed: of that drawing.
    Raises:
        DataError: a file is not an image, or there are too few.
    """
    from PIL import Image, ImageOps

    with _files(folder) as (names, opened):
        files = sorted(name for name in names if name.lower().endswith(SUFFIXES))
        if len(files) < (n or 1):
            raise DataError(f"{folder}: {len(files)} PNG or JPEG files, but {n or 'at least one'} asked for.")
        chosen = range(len(files)) if n is None else np.random.default_rng(seed).permutation(len(files))[:n]
        for name in (files[i] for i in sorted(chosen)):
            try:
                with opened(name) as file, Image.open(file) as image:
                    fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
            except (OSError, SyntaxError, ValueError, zipfile.BadZipFile) as error:
                raise DataError(f"{folder}/{name}: not a readable image; remove it or fetch it again.") from error
            yield np.asarray(fitted)[None], [None], [None]


@contextlib.contextmanager
def _files(folder):
    """(names of all files in a folder or a ZIP archive, a function that opens one by its name)."""
    folder = Path(folder)
    if folder.is_file():
        try:
            archive = zipfile.ZipFile(folder)
        except zipfile.BadZipFile as error:
            raise DataError(f"{folder}: neither a folder nor a ZIP archive of images.") from error
        with archive:
            yield archive.namelist(), archive.open
    else:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        yield names, lambda name: (folder / name).open("rb")


def make_reference(name, settings, folder):
    """Write the reference image set `name` into `folder`; returns its manifest.

    Args:
        settings: {"renderer": "shapes" or "digits", "seed": int, "images": int}, or
            {"folder": PATH, "height": int, "width": int, "images": int or None for all, "seed": int}.
    """
    if settings.get("folder"):
        if not (settings.get("height") and settings.get("width")):
            raise DataError(f"reference {name}: a folder needs the 'height' and 'width' to bring its images to.")
        resize = f"PIL bicubic and central crop to {settings['height']}x{settings['width']}"
        found = from_folder(
            settings["folder"], settings["height"], settings["width"], settings.get("images"), settings.get("seed") or 0
        )
    else:
        resize = "none"
        found = rendered(settings["renderer"], settings["seed"], settings["images"])
    fields = {
        "reference": name,
        "source": settings,
        "resize": resize,
        "provenance": provenance(("numpy", "pillow")),
    }
    return images.write_images(folder, found, fields)


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
