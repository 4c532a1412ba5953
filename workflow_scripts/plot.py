"""Draw one figure of the report as PNG and SVG, and a second SVG for a phone's width.

Example:
  python workflow_scripts/plot.py quality_vs_cost --results results/embedded
writes results/embedded/figures/quality_vs_cost.png, quality_vs_cost.svg and quality_vs_cost-narrow.svg.
"""

import argparse
import json
from pathlib import Path

from quantwatt import command, figures, tables


def main(argv=None):
    """Read the tables and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=figures.NAMES, help="what to draw")
    parser.add_argument("--results", type=Path, required=True, help="the experiment's folder, results/EXPERIMENT")
    parser.add_argument("--cells", type=json.loads, default=[],
                        help="JSON list of {model, method, sampling}: the rows of image_grid")  # fmt: skip
    parser.add_argument("--summary", type=Path, help="input (default: RESULTS/tables/summary.csv)")
    parser.add_argument("--layers", type=Path, help="input of the layers' figures (default: RESULTS/tables/layers.csv)")
    parser.add_argument("--output", type=Path, help="without suffix (default: RESULTS/figures/FIGURE)")
    args = parser.parse_args(argv)

    folder = args.results / "tables"
    layers = tables.read_table(args.layers or folder / "layers.csv") if args.figure.startswith("layer_") else None
    summary = tables.read_table(args.summary or folder / "summary.csv")
    inputs = figures.Inputs(summary, layers, args.results, tuple(args.cells))
    figures.draw(args.figure, inputs, args.output or args.results / "figures" / args.figure)


if __name__ == "__main__":
    command.run(main)
