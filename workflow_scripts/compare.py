"""Write tables/comparison.json and comparison.md: what became of an earlier result.

Example:
  python workflow_scripts/compare.py --earlier results/embedded-of-may --results results/embedded

The script succeeds whatever it finds; tools/compare.py, which also compares two methods, ends with a code for it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from quantwatt.artifacts.manifest import atomic_path, write_json
from quantwatt.jobs import command
from quantwatt.report.compare import comparison, result_folder, text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--earlier", type=Path, required=True, help="the earlier result's folder")
    parser.add_argument("--results", type=Path, required=True, help="the experiment's folder, results/EXPERIMENT")
    parser.add_argument("--json", type=Path, help="output (default: RESULTS/tables/comparison.json)")
    parser.add_argument("--markdown", type=Path, help="output (default: RESULTS/tables/comparison.md)")
    args = parser.parse_args(argv)

    found = comparison.compare(result_folder.read(args.earlier), result_folder.read(args.results))
    with atomic_path(args.markdown or args.results / "tables/comparison.md") as temporary:
        temporary.write_text(text.comparison(found), encoding="utf-8")
    write_json(args.json or args.results / "tables/comparison.json", found.as_json())


if __name__ == "__main__":
    command.run(main)
