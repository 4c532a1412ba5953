"""Draw one figure of the report as PNG and SVG, and a second, narrow SVG for phones.

Example:
  python workflow_scripts/figure.py quality_vs_cost --results results/embedded
writes results/embedded/figures/quality_vs_cost.png, quality_vs_cost.svg and quality_vs_cost-narrow.svg.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from quantwatt.artifacts import layout
from quantwatt.jobs import command
from quantwatt.report import cells, figures, tables


def main(argv: Sequence[str] | None = None) -> None:
    """Read the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=layout.FIGURES, help="name of the figure")
    parser.add_argument("--results", type=Path, required=True, help="the experiment's folder, results/EXPERIMENT")
    parser.add_argument(
        "--grid", help='JSON file, - for standard input: {"cells": [{model, method, sampling}]}, only for image_grid'
    )
    parser.add_argument("--summary", type=Path, help="input (default: RESULTS/tables/summary.csv)")
    parser.add_argument("--layers", type=Path, help="input of the layer figures (default: RESULTS/tables/layers.csv)")
    parser.add_argument("--sensitivity", type=Path,
                        help="input of the sensitivity figure (default: RESULTS/tables/sensitivity.csv)")  # fmt: skip
    parser.add_argument("--output", type=Path, help="output path without suffix (default: RESULTS/figures/FIGURE)")
    args = parser.parse_args(argv)

    paths = layout.tables(args.results, args.figure)
    readers = {path: tables.read_summary if path.stem == "summary" else tables.read_table for path in paths}
    table_inputs = {path.stem: read(getattr(args, path.stem) or path) for path, read in readers.items()}
    listed = cells.read_grid(args.grid)["cells"] if args.grid else ()
    inputs = figures.Inputs(**table_inputs, results=args.results, cells=tuple(listed))
    figures.draw(args.figure, inputs, args.output or args.results / "figures" / args.figure)


if __name__ == "__main__":
    command.run(main)
