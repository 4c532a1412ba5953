"""Gather the results of several sensitivity jobs into one table, in the model's layer order."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from quantwatt.allocate.allocation import tried
from quantwatt.artifacts import csv_files, manifest, sensitivity_table
from quantwatt.jobs import command


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the model's manifest.json")
    parser.add_argument("--sensitivity-name", required=True)
    parser.add_argument("--sensitivity", required=True, type=json.loads, help="the sensitivity's entry, as JSON")
    parser.add_argument("--jobs", required=True, type=Path, help="folder of the jobs' tables, job-N.csv")
    parser.add_argument("--output", required=True, help="CSV file to write")
    args = parser.parse_args(argv)
    layers = tried(manifest.read_json(args.model)["layers"], args.sensitivity, args.sensitivity_name)
    tables = [args.jobs / f"job-{job}.csv" for job in range(args.sensitivity["jobs"])]
    ranges = sensitivity_table.ranges_of(args.sensitivity)
    rows = sensitivity_table.gathered(tables, layers, args.sensitivity["candidates"], ranges)
    csv_files.write(args.output, sensitivity_table.COLUMNS, rows)


if __name__ == "__main__":
    command.run(main)
