"""Write the tables of a published study, with its columns, from the measurements of the listed cells."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from quantwatt import registry
from quantwatt.artifacts import manifest
from quantwatt.artifacts.provenance import provenance
from quantwatt.jobs import command
from quantwatt.report import cells


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", help="a module of quantwatt/report/studies, such as sd35-large-energy")
    parser.add_argument("--results", type=Path, required=True, help="the experiment's folder, results/EXPERIMENT")
    parser.add_argument(
        "--grid", required=True, help='JSON file, - for standard input: {"cells": [{model, method, sampling}]}'
    )
    parser.add_argument("--output", type=Path, required=True, help="manifest.json to write; the tables go next to it")
    args = parser.parse_args(argv)
    listed = cells.read_grid(args.grid)["cells"]
    names = registry.load("studies", args.study).write(args.output.parent, args.results, listed)
    files = manifest.describe_files(args.output.parent, names)
    manifest.write_json(args.output, {"study": args.study, "files": files, "provenance": provenance(("pandas",))})


if __name__ == "__main__":
    command.run(main)
