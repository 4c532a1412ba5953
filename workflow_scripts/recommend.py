"""Write tables/recommendation.json and .csv: what to take under limits, and how sure it is that each method holds them.

Example:
  python workflow_scripts/recommend.py --results results/embedded --limits '{"min_quality": {"psnr": 40}}'
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from quantwatt.artifacts import csv_files
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import write_json
from quantwatt.config import limits
from quantwatt.jobs import command
from quantwatt.report import recommendation, tables


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="the experiment's folder, results/EXPERIMENT")
    parser.add_argument("--limits", type=json.loads, default={}, metavar="JSON", help="as the keys of config.yaml")
    parser.add_argument("--summary", type=Path, help="input (default: RESULTS/tables/summary.csv)")
    parser.add_argument("--json", type=Path, help="output (default: RESULTS/tables/recommendation.json)")
    parser.add_argument("--csv", type=Path, help="output (default: RESULTS/tables/recommendation.csv)")
    args = parser.parse_args(argv)
    if wrong := limits.wrong(args.limits):
        raise DataError(f"--limits: {wrong}")

    folder = args.results / "tables"
    groups = recommendation.recommend(tables.read_summary(args.summary or folder / "summary.csv"), args.limits)
    csv_files.write(args.csv or folder / "recommendation.csv", recommendation.COLUMNS, recommendation.lines(groups))
    write_json(args.json or folder / "recommendation.json", groups)


if __name__ == "__main__":
    command.run(main)
