"""Assign a format to every layer."""

import argparse
import json
from collections.abc import Sequence

from quantwatt import registry
from quantwatt.allocate.ranges import allocate_ranges
from quantwatt.artifacts import component_files, manifest
from quantwatt.jobs import command


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the model's manifest.json")
    parser.add_argument("--component", help="name of the component whose layers get formats (default: the denoiser)")
    parser.add_argument("--method-name", required=True)
    parser.add_argument("--method", required=True, type=json.loads, help="the method's entry, as JSON")
    parser.add_argument("--candidates", help="JSON file from candidates.py, for a mixed allocation")
    parser.add_argument("--trials", help="CSV file from trials.py, if the programs have several choices")
    written = "{layer: {weights, activations}}, or with a schedule [{steps, layers: {...}}]"
    parser.add_argument("--output", required=True, help=f"JSON file to write: {written}")
    args = parser.parse_args(argv)
    layers, results = component_files.described(manifest.read_json(args.model), args.component)["layers"], {}
    if args.candidates:
        results = registry.load("allocations", args.method["allocation"]["name"]).read(args.candidates, args.trials)
        if "unsupported" in results["solved"]:
            manifest.write_json(args.output, results["solved"])
            return
    manifest.write_json(args.output, allocate_ranges(layers, args.method, args.method_name, **results))


if __name__ == "__main__":
    command.run(main)
