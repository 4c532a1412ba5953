"""Write the tables of an experiment, summary.csv and those beside it in tables/, from its cells' JSON files.

Example:
  python workflow_scripts/tables.py --results results/embedded --grid grid.json
where grid.json lists the cells, the metrics and the baseline:
  {"cells": [{"model": "tiny-sd3", "method": "bf16", "sampling": "steps-20"}], "metrics": ["fid"], "baseline": "bf16"}
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt import registry
from quantwatt.allocate.allocation import taken_apart
from quantwatt.artifacts import layout
from quantwatt.artifacts.manifest import read_json
from quantwatt.jobs import command
from quantwatt.report import (
    adapter_effect,
    categories,
    cells,
    component_table,
    equal_bits,
    layer_table,
    method_pairs,
    tables,
)

if TYPE_CHECKING:
    import pandas as pd


def tried_in(
    results: str | Path, entries: Iterable[Mapping[str, Any]]
) -> list[tuple[str, str, "pd.DataFrame", dict[str, str | None]]]:
    """The argument `tried` of `layer_table.sensitivity_table`, from entries {"model", "sensitivity"}."""
    tried = []
    for entry in entries:
        table = tables.read_table(layout.path(results, "sensitivity", entry))
        described = read_json(layout.path(results, "model", entry))["layers"]
        described |= taken_apart(described, registry.names("transforms"))  # a table may contain parts of a layer
        groups = {layer: settings.get("group") for layer, settings in described.items()}
        tried.append((entry["model"], entry["sensitivity"], table, groups))
    return tried


def main(argv: Sequence[str] | None = None) -> None:
    """Read every listed cell and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="the experiment's folder, results/EXPERIMENT")
    parser.add_argument(
        "--grid",
        required=True,
        help="JSON file, - for standard input: cells, metrics and the baseline of the ratios; optional: samplings "
        "{name: settings}, to detect samplings that differ only by seed or steps, methods {name: settings}, to check "
        "the cells against, sensitivities [{model, sensitivity}] of mixed methods, and the margin of equal costs",
    )
    parser.add_argument("--carbon", type=float, help="grams of CO2 equivalent per kWh of the grid")
    parser.add_argument("--summary", type=Path, help="output (default: RESULTS/tables/summary.csv)")
    parser.add_argument("--layers", type=Path, help="output (default: RESULTS/tables/layers.csv)")
    parser.add_argument("--components", type=Path, help="output (default: RESULTS/tables/components.csv)")
    parser.add_argument("--sensitivity", type=Path, help="output (default: RESULTS/tables/sensitivity.csv)")
    parser.add_argument("--pairs", type=Path, help="output (default: RESULTS/tables/pairs.csv)")
    parser.add_argument("--formats", type=Path, help="output (default: RESULTS/tables/formats.csv)")
    parser.add_argument("--changes", type=Path, help="output (default: RESULTS/tables/changes.csv)")
    parser.add_argument("--categories", type=Path, help="output (default: RESULTS/tables/categories.csv)")
    parser.add_argument("--adapters", type=Path, help="output (default: RESULTS/tables/adapters.csv)")
    args = parser.parse_args(argv)

    defaults = {"samplings": {}, "sensitivities": [], "margin": tables.MARGIN}
    grid: dict[str, Any] = {**defaults, **cells.read_grid(args.grid)}
    records = cells.read_cells(args.results, grid["cells"], grid["metrics"], grid if "methods" in grid else None)
    folder = args.results / "tables"
    summary = tables.summary_table(records, grid["baseline"], grid["samplings"], args.carbon, grid["margin"])
    tables.write_summary(args.summary or folder / "summary.csv", summary)
    tables.write_table(args.layers or folder / "layers.csv", layer_table.layers_table(records))
    tables.write_table(args.components or folder / "components.csv", component_table.components_table(records))
    sensitivity = layer_table.sensitivity_table(records, tried_in(args.results, grid["sensitivities"]))
    tables.write_table(args.sensitivity or folder / "sensitivity.csv", sensitivity)
    pairs = method_pairs.pairs_table(records, grid["baseline"], grid["margin"])
    tables.write_table(args.pairs or folder / "pairs.csv", pairs)
    tables.write_table(args.formats or folder / "formats.csv", equal_bits.formats_table(records, summary, pairs))
    tables.write_table(args.changes or folder / "changes.csv", equal_bits.changes_table(records, summary, pairs))
    of_categories = categories.categories_table(records, grid["samplings"])
    tables.write_table(args.categories or folder / "categories.csv", of_categories)
    tables.write_table(args.adapters or folder / "adapters.csv", adapter_effect.adapters_table(records))
    for sentence in method_pairs.left_out(records):
        print(sentence)


if __name__ == "__main__":
    command.run(main)
