"""Merge the parts of an image set into one manifest; no image is copied."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.image_parts import image_name, part_name
from quantwatt.artifacts.images import prompts_sha256
from quantwatt.artifacts.manifest import read_json, write_json
from quantwatt.jobs import command

# Fields that may differ between parts; only the first part may have repeat_psnr (a batch generated twice).
OF_A_PART = (
    "status", "reason", "n_images", "prompts_sha256", "seconds", "provenance", "images", "repeat_psnr", "calls",
)  # fmt: skip


def gather(folder: str | Path, starts: Iterable[int]) -> dict[str, Any]:
    """Write the manifest of an image set from the parts in its folder, and remove files that belong to no part.

    If a part failed, the set has failed for the same reason; the images of the other parts stay, so that only the
    failed part must be generated again.

    Args:
        folder: the set's folder.
        starts: number of the first image of each part, in order.
    Returns:
        The manifest, as from `images.write_images`, with "parts": [{"file", "n_images", "seconds", "provenance"}].
    Raises:
        DataError: a part is missing, was made with other settings or kernels, or does not begin where the part before
            it ends.
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
        "prompts_sha256": prompts_sha256(images),
        "seconds": sum(part["seconds"] for part in parts.values()),
        **_calls([part["calls"] for part in parts.values() if part.get("calls")]),
        "parts": [
            {"file": name, **{key: part[key] for key in ("n_images", "seconds", "provenance")}}
            for name, part in parts.items()
        ],
        "images": images,
    }


def _calls(counts):
    """{"calls": of all parts}, what their cache has skipped; {} without one."""
    sums = {key: sum(one[key] for one in counts) for key in ("asked", "skipped")}
    return {"calls": counts[0] | sums} if counts else {}


def _check(folder, parts):
    """Refuse parts that do not form one set."""
    (first_name, first), end = next(iter(parts.items())), 0
    for name, part in parts.items():
        if part["images"][0]["file"] != image_name(end):
            raise DataError(
                f"{folder / name}: begins with {part['images'][0]['file']}, but the parts before it end at {end}; "
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
    """Remove files of an earlier set with another size or other parts."""
    for path in folder.glob("part-*.json"):
        if path.name not in parts:
            path.unlink()
    images = [image for part in parts.values() for image in part["images"]]
    listed = {file["file"] for image in images for file in (image, *filter(None, [image.get("latents")]))}
    for path in (*folder.glob("shard-*/*.png"), *folder.glob("shard-*/*.npy")):
        if path.relative_to(folder).as_posix() not in listed and not path.parent.is_symlink():
            path.unlink()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--first", required=True, nargs=3, type=int, metavar=("START", "STOP", "STEP"),
        help="first image number of every part, as arguments of Python's range",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, help="manifest.json to write; the parts and their images are in the same folder"
    )
    args = parser.parse_args(argv)
    gather(Path(args.output).parent, range(*args.first))


if __name__ == "__main__":
    command.run(main)
