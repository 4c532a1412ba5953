"""Write tables/summary.csv, layers.csv and sensitivity.csv from the JSON files of the listed cells.

Example:
  python workflow_scripts/summarize.py --results results/embedded --baseline bf16 --metrics '["fid", "psnr"]' \
      --cells '[{"model": "tiny-sd3", "method": "bf16", "sampling": "steps-20"}]'
"""

import argparse
import json
from pathlib import Path

from quantwatt import cells, command, layers, tables
from quantwatt.allocation import TAKING_APART, taken_apart
from quantwatt.manifest import read_json


def tried_in(results, entries):
    """What `layers.sensitivity_table` reads, of entries {"model", "sensitivity"}."""
    found = []
    for model, name in ((entry["model"], entry["sensitivity"]) for entry in entries):
        table = tables.read_table(results / "sensitivity" / model / f"{name}.csv")
        described = read_json(results / "models" / model / "manifest.json")["layers"]
        described |= taken_apart(described, TAKING_APART)  # a table may name parts of a layer
        found.append((model, name, table, {layer: settings.get("group") for layer, settings in described.items()}))
    return found


def main(argv=None):
    """Read every listed cell and write the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="the experiment's folder, results/EXPERIMENT")
    parser.add_argument("--cells", type=json.loads, required=True, help="JSON list of {model, method, sampling}")
    parser.add_argument("--metrics", type=json.loads, required=True, help='JSON list of names, as ["fid", "psnr"]')
    parser.add_argument("--baseline", required=True, help="the method that ratios refer to")
    parser.add_argument("--samplings", type=json.loads, default={},
                        help="JSON {name: settings}, to tell samplings that differ only by seed or steps")  # fmt: skip
    parser.add_argument("--sensitivities", type=json.loads, default=[],
                        help="JSON list of {model, sensitivity}, by which mixed methods choose formats")  # fmt: skip
    parser.add_argument("--carbon", type=float, help="grams of CO2 equivalent per kWh of the grid")
    parser.add_argument("--summary", type=Path, help="output (default: RESULTS/tables/summary.csv)")
    parser.add_argument("--layers", type=Path, help="output (default: RESULTS/tables/layers.csv)")
    parser.add_argument("--sensitivity", type=Path, help="output (default: RESULTS/tables/sensitivity.csv)")
    args = parser.parse_args(argv)

    found = cells.read_cells(args.results, args.cells, args.metrics)
    folder = args.results / "tables"
    summary = tables.summary_table(found, args.baseline, args.samplings, args.carbon)
    tables.write_table(args.summary or folder / "summary.csv", summary)
    tables.write_table(args.layers or folder / "layers.csv", layers.layers_table(found))
    sensitivity = layers.sensitivity_table(found, tried_in(args.results, args.sensitivities))
    tables.write_table(args.sensitivity or folder / "sensitivity.csv", sensitivity)


if __name__ == "__main__":
    command.run(main)
