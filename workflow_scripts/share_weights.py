"""Join the checkpoint of a method from the denoiser of another checkpoint and from weights of further components.

So are those of methods that draw with a cache or in steps of their own, or that quantize more than the denoiser.
"""

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantwatt.artifacts import component_files, manifest, shards
from quantwatt.artifacts.errors import DataError
from quantwatt.config import methods
from quantwatt.jobs import command


def share(weights: Path, name: str, method: Mapping[str, Any], output: Path, components: Iterable[Path] = ()) -> None:
    """Write a checkpoint with the weights of others, whose files are linked, not copied.

    Args:
        weights: manifest.json of the checkpoint with the denoiser.
        name, method: of the new checkpoint's method, and its completed entry.
        output: the new manifest.json; the files go next to it, those of a component in a folder of its name.
        components: manifest.json of the weights of each further component.
    Raises:
        DataError: a part was quantized otherwise, or the folder cannot be written.
    """
    made = manifest.read_json(weights)
    if methods.of_denoiser(made["settings"]) != methods.of_denoiser(method):
        raise DataError(f"{weights}: was quantized otherwise than {name}, and they can share no weights.")
    parts = {}
    for path in components:
        part = manifest.read_json(path)
        parts[part["component"]] = path, part
    if {key: part["settings"] for key, (_, part) in parts.items()} != {
        key: methods.of_component(method, key) for key in method.get(methods.COMPONENTS, ())
    }:
        raise DataError(f"{output}: {name} quantizes its components otherwise than the weights that it is given.")
    failed = [f"{key}: {part['reason']}" for key, (_, part) in parts.items() if part["status"] != "ok"]
    if failed and made["status"] == "ok":
        made |= {"status": "unsupported", "reason": failed[0], "files": {}, "layers": {}, "size_bytes": None}
    take(weights.parent, made["files"], output.parent)
    if parts and made["status"] == "ok":
        for key, (path, part) in parts.items():
            take(path.parent, part["files"], output.parent / key)
        kept = {key: {entry: part[entry] for entry in component_files.KEPT} for key, (_, part) in parts.items()}
        cost = total_cost([made["quantize"], *(part["quantize"] for part in kept.values())])
        made |= {"components": kept, "quantize": cost, "solver": solvers_of(method)}
    manifest.write_json(output, {**made, "method": name, "settings": method})


def take(source: Path, files: Iterable[str], folder: Path) -> None:
    """Link weight files into a folder, in the place of those that it has."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(shards.PATTERN.format(suffix="*") + "*"):
        stale.unlink()
    for file in files:
        with manifest.atomic_path(folder / file) as temporary:
            link(source / file, temporary)


def total_cost(costs: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the cost of quantizing several networks, one after another; None is that of one that is not quantized."""
    paid = [cost for cost in costs if cost]
    if len(paid) < 2:
        return dict(paid[0]) if paid else None
    joules = [cost["energy_j"] for cost in paid]
    unknown = next((cost for cost in paid if cost["energy_j"] is None), paid[0])
    total = {"seconds": sum(cost["seconds"] for cost in paid), "energy_j": None if None in joules else sum(joules)}
    return {**unknown, **total}


def solvers_of(method: Mapping[str, Any]) -> str:
    """Return the name of the solver of a method's networks, or all names, joined."""
    return " + ".join(dict.fromkeys(entry["solver"]["name"] for entry in methods.quantizing(method) if entry["solver"]))


def link(source: Path, target: Path) -> None:
    """Make a hard link, or a copy where the file system has no links."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, type=Path, help="manifest.json of the checkpoint with the weights")
    parser.add_argument(
        "--components", nargs="*", default=[], type=Path, help="manifest.json of each component's weights"
    )
    parser.add_argument("--method-name", required=True)
    parser.add_argument("--method", required=True, type=json.loads, help="the method's entry, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="manifest.json to write; the weights go next to it")
    args = parser.parse_args(argv)
    share(args.weights, args.method_name, args.method, args.output, args.components)


if __name__ == "__main__":
    command.run(main)
