"""Gather the parts of an image set into one manifest; no image is copied."""

import argparse
from pathlib import Path

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.image_parts import image_name, part_name
from quantwatt.artifacts.images import prompts_sha256
from quantwatt.artifacts.manifest import read_json, write_json
from quantwatt.jobs import command

# What parts may differ in; the first is the one of which a batch may have been drawn twice.
OF_A_PART = ("status", "reason", "n_images", "prompts_sha256", "seconds", "provenance", "images", "repeat_psnr")


def gather(folder, starts):
    """Write the manifest of a set whose parts lie in its folder, and remove what is of no part.

    A set of which a part failed has failed, for that part's reason; the images of the others stay, so that this part
    alone is to be made again.

    Args:
        folder: the set's.
        starts: number of the first image of each part, in order.
    Returns:
        The manifest, as of `images.write_images`, with "parts": [{"file", "n_images", "seconds", "provenance"}].
    Raises:
        DataError: a part is missing, was not made with the same settings and kernels, or does not begin where the one
            before it ends.
    """
    folder = Path(folder)
    parts = {name: read_json(folder / name) for name in map(part_name, starts)}
    failed = [part for part in parts.values() if part["status"] != "ok"]
    if not failed:
        _check(folder, parts)
    manifest = failed[0] if failed else _joined(parts)
    _remove_others(folder, parts)
    write_json(folder / "manifest.json", manifest)
    return manifest


def _joined(parts):
    images = [image for part in parts.values() for image in part["images"]]
    first = next(iter(parts.values()))
    return {
        **{key: value for key, value in first.items() if key != "images"},
        "n_images": len(images),
        "prompts_sha256": prompts_sha256([image["prompt"] for image in images]),
        "seconds": sum(part["seconds"] for part in parts.values()),
        "parts": [
            {"file": name, **{key: part[key] for key in ("n_images", "seconds", "provenance")}}
            for name, part in parts.items()
        ],
        "images": images,
    }


def _check(folder, parts):
    """Refuse parts that are not one set."""
    (first_name, first), end = next(iter(parts.items())), 0
    for name, part in parts.items():
        if part["images"][0]["file"] != image_name(end):
            raise DataError(
                f"{folder / name}: begins with {part['images'][0]['file']}, and the parts before it end at {end}; "
                "delete it and run again."
            )
        end += part["n_images"]
        for key in first.keys() - set(OF_A_PART):
            if part.get(key) != first[key]:
                raise DataError(
                    f"{folder / name}: {key} is {part.get(key)!r}, but {first[key]!r} in {first_name}; parts of one "
                    "set are made on devices of one kind: delete it and run again."
                )


def _remove_others(folder, parts):
    """Remove what a set of another size, or in other parts, has left."""
    for path in folder.glob("part-*.json"):
        if path.name not in parts:
            path.unlink()
    listed = {image["file"] for part in parts.values() for image in part["images"]}
    for path in folder.glob("shard-*/*.png"):
        if path.relative_to(folder).as_posix() not in listed and not path.parent.is_symlink():
            path.unlink()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--first", required=True, nargs=3, type=int, metavar=("START", "STOP", "STEP"),
        help="numbers of the first images of parts, as those of Python's range",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, help="manifest.json to write; the parts and their images are beside it"
    )
    args = parser.parse_args(argv)
    gather(Path(args.output).parent, range(*args.first))


if __name__ == "__main__":
    command.run(main)
