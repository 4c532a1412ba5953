"""Print which damage each metric sees at how many images: the widest format told apart from the unquantized model.

Example:
  snakemake --cores all --config experiment=embedded-metrics
  python workflow_scripts/tools/told_apart.py --results results/embedded-metrics --output told_apart.csv
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.artifacts.errors import DataError
from quantwatt.jobs import command
from quantwatt.report import tables
from quantwatt.report.told_apart import told_apart


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="results/EXPERIMENT, of a finished run")
    parser.add_argument("--output", type=Path, help="also write the table with all methods to this .csv file")
    args = parser.parse_args(argv)
    paths = [args.results / "tables" / name for name in ("summary.csv", "pairs.csv")]
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{missing[0]}: there is no such table; name results/EXPERIMENT of a finished run.")
    table = told_apart(*map(tables.read_table, paths))
    if args.output:
        tables.write_table(args.output, table)
    for model, rows in table.groupby("model"):
        wide = rows.pivot(index="metric", columns="images", values="seen_bits").reindex(rows["metric"].unique())
        wide.index.name = wide.columns.name = None
        print(f"{model}: bits of the widest format told apart, by number of images")
        print(wide.to_string(float_format=lambda bits: f"{bits:.2f}", na_rep="none"))


if __name__ == "__main__":
    command.run(main)
