"""Write tables/gate.json and gate.md: which methods pass a policy.

Example:
  python workflow_scripts/gate.py --results results/embedded --policy '{"cost": {"energy": 1}}'

The script succeeds whatever the verdict is, which is in the files: a run that made its results has not failed, and
Snakemake would delete the verdict of a rule that did. tools/gate.py reads a policy in YAML and ends with a code.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from quantwatt.artifacts.manifest import atomic_path, write_json
from quantwatt.jobs import command
from quantwatt.report import gate, tables


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="the experiment's folder, results/EXPERIMENT")
    parser.add_argument("--policy", type=json.loads, required=True, metavar="JSON", help="as the file of a policy")
    parser.add_argument("--summary", type=Path, help="input (default: RESULTS/tables/summary.csv)")
    parser.add_argument("--json", type=Path, help="output (default: RESULTS/tables/gate.json)")
    parser.add_argument("--markdown", type=Path, help="output (default: RESULTS/tables/gate.md)")
    args = parser.parse_args(argv)

    folder, policy = args.results / "tables", gate.DEFAULTS | args.policy
    checks = gate.judge(tables.read_summary(args.summary or folder / "summary.csv"), policy, "--policy")
    with atomic_path(args.markdown or folder / "gate.md") as temporary:
        temporary.write_text(gate.as_markdown(checks, policy), encoding="utf-8")
    write_json(args.json or folder / "gate.json", gate.as_json(checks, policy))


if __name__ == "__main__":
    command.run(main)
