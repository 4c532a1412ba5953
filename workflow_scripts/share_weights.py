"""Make the checkpoint of a method that draws another one's weights with a cache, or in steps of its own."""

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantwatt.artifacts import manifest, shards
from quantwatt.artifacts.errors import DataError
from quantwatt.config import methods
from quantwatt.jobs import command


def share(weights: Path, name: str, method: Mapping[str, Any], output: Path) -> None:
    """Write a checkpoint with the weights of another one, whose files are linked, not copied.

    Args:
        weights: the other checkpoint's manifest.json.
        name, method: of the new checkpoint's method, and its completed entry.
        output: the new manifest.json; the files go next to it.
    Raises:
        DataError: the other checkpoint's method quantizes otherwise, or the folder cannot be written.
    """
    made = manifest.read_json(weights)
    if methods.quantization(made["settings"]) != methods.quantization(method):
        raise DataError(f"{weights}: was quantized otherwise than {name}, and they can share no weights.")
    folder = output.parent
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(shards.PATTERN.format(suffix="*") + "*"):
        stale.unlink()
    for file in made["files"]:
        with manifest.atomic_path(folder / file) as temporary:
            link(weights.parent / file, temporary)
    manifest.write_json(output, {**made, "method": name, "settings": method})


def link(source: Path, target: Path) -> None:
    """Make a hard link, or a copy where the file system has no links."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, type=Path, help="manifest.json of the checkpoint with the weights")
    parser.add_argument("--method-name", required=True)
    parser.add_argument("--method", required=True, type=json.loads, help="the method's entry, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="manifest.json to write; the weights go next to it")
    args = parser.parse_args(argv)
    share(args.weights, args.method_name, args.method, args.output)


if __name__ == "__main__":
    command.run(main)
