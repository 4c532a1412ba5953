"""Solve a mixed method's integer programs: choose a candidate for every layer within the budgets.

Writes all choices, with the candidate of every layer, as JSON, and a table of the choices as CSV. If this device cannot
meet a budget of time or energy, the JSON is {"unsupported": reason} and the table has no rows.
"""

import argparse
import json
from collections.abc import Mapping, Sequence

from quantwatt.allocate import programs
from quantwatt.allocate.allocation import taken_apart
from quantwatt.artifacts import csv_files, manifest, sensitivity_table
from quantwatt.jobs import command

COLUMNS = ("program", "number", "target", "split", "cost", "unit", "scores", "layers")


def counted(ranges: Sequence[Mapping[str, str | None]]) -> str:
    """Count the layers of each candidate in each range of steps, such as "w4 12, w8 3"; ranges by "; "."""
    counts = []
    for layers in ranges:
        named = ["16 bit" if candidate is None else candidate for candidate in layers.values()]
        counts.append(", ".join(f"{name} {named.count(name)}" for name in sorted(set(named))))
    return "; ".join(counts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the model's manifest.json")
    parser.add_argument("--method-name", required=True)
    parser.add_argument("--method", required=True, type=json.loads, help="the method's entry, as JSON")
    parser.add_argument("--sensitivity", required=True, help="CSV file from sensitivity.py")
    parser.add_argument("--costs", help="CSV file from layer_costs.py, for a budget of time or energy")
    parser.add_argument("--output", required=True, help="JSON file to write")
    parser.add_argument("--table", required=True, help=f"CSV file to write: {', '.join(COLUMNS)}")
    args = parser.parse_args(argv)
    model = manifest.read_json(args.model)
    tables = sensitivity_table.by_range(sensitivity_table.read(args.sensitivity))
    costs = args.costs and sensitivity_table.by_layer(sensitivity_table.read(args.costs, sensitivity_table.COSTS))
    layers = taken_apart(model["layers"], [transform["name"] for transform in args.method["transforms"]])
    try:
        choices = programs.solve(layers, tables, costs, args.method, args.method_name, model["settings"]["dtype"])
    except programs.BudgetInfeasible as error:
        csv_files.write(args.table, COLUMNS, [])
        manifest.write_json(args.output, {"unsupported": str(error)})
        return
    summed = [
        {key: choice.get(key) for key in COLUMNS}
        | {"layers": counted(choice["ranges"]), "scores": json.dumps(choice["scores"])}
        for choice in choices
    ]
    csv_files.write(args.table, COLUMNS, summed)
    manifest.write_json(args.output, choices)


if __name__ == "__main__":
    command.run(main)
