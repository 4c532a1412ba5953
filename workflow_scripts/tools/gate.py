"""Decide whether the methods of a finished experiment pass a policy: a gate for a pull request or a release.

Example:
  python workflow_scripts/tools/gate.py --results results/embedded --policy gate.yaml
where gate.yaml is, for example:
  methods: [rtn-w8a8]
  quality: {psnr: {limit: 35}, clip-score: {margin: 0.3}}
  cost: {energy: 1.0, size_mb: 5}
Every key is explained in resources/schemas/gate.schema.json. Prints a table in Markdown. The exit code is 0 if every
check is passed, 1 if one failed, 2 if one is undecided, and 3 if the gate could not be judged.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path, write_json
from quantwatt.config.policy_file import load_policy
from quantwatt.config.schemas import ConfigurationError
from quantwatt.jobs import command
from quantwatt.report import gate, tables

CODES = {gate.PASSED: 0, gate.FAILED: 1, gate.UNDECIDED: 2}


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.DecidingParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="the experiment's folder, results/EXPERIMENT")
    parser.add_argument("--policy", type=Path, required=True, help="YAML file")
    parser.add_argument("--json", type=Path, help="also write all checks here")
    parser.add_argument("--markdown", type=Path, help="also write the printed table here")
    args = parser.parse_args(argv)
    try:
        policy = load_policy(args.policy, str(args.policy))
        checks = gate.judge(tables.read_summary(args.results / "tables/summary.csv"), policy, str(args.policy))
    except (ConfigurationError, DataError) as error:
        print(error, file=sys.stderr)
        return command.NO_VERDICT
    text = gate.as_markdown(checks, policy)
    if args.json:
        write_json(args.json, gate.as_json(checks, policy))
    if args.markdown:
        with atomic_path(args.markdown) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(text, end="")
    return CODES[gate.outcome_of(checks)]


if __name__ == "__main__":
    command.run(main)
