"""Compare two results row by row, or two methods of one result.

Examples:
  python workflow_scripts/tools/compare.py results/embedded-of-may results/embedded
  python workflow_scripts/tools/compare.py --results results/embedded --methods gptq-w4a8 rtn-w4a8

Two results are folders results/EXPERIMENT, the earlier one first: of another commit, library version, machine or month.
Regressions come first, then what else changed, and in what the two differ beside their figures. A regression is a
figure that is told to be worse by more than is tolerated: of costs the results' margin (5 %), of metrics nothing. If
nothing got worse by more, any figure is called one with a chance of 5 % at most, however many there are. Time and
energy themselves count with --absolute alone, else their ratios to the baseline: two days differ by more than the
intervals of one hold.

The exit code is 0, also where something got worse: the table is what was asked for. With --fail-on-regression it is 1
if there is a regression, 2 if there is none, but something of the earlier result could not be compared, and else 0.
It is 3 if nothing was compared, because an argument or a file is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path, write_json
from quantwatt.jobs import command
from quantwatt.report.compare import comparison, result_folder, text, two_methods

CODES = {comparison.NO_REGRESSION: 0, comparison.REGRESSION: 1, comparison.UNDECIDED: 2}


def figure_and_number(word: str) -> tuple[str, float]:
    """FIGURE=NUMBER as a pair."""
    figure, sign, number = word.partition("=")
    try:
        if sign and (value := float(number)) >= 0:
            return figure, value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{word}' is not FIGURE=NUMBER with a number from 0 on, such as psnr=0.5")


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.DecidingParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earlier", nargs="?", help="folder of the earlier result")
    parser.add_argument("now", nargs="?", help="folder of the result that is held against it")
    parser.add_argument("--results", help="with --methods: the experiment's folder, results/EXPERIMENT")
    parser.add_argument("--methods", nargs=2, metavar="METHOD", help="two methods of --results")
    parser.add_argument(
        "--tolerate",
        nargs="+",
        action="extend",
        default=[],
        type=figure_and_number,
        metavar="FIGURE=NUMBER",
        help="change for the worse that is no regression: psnr=0.5 in dB, 'time ratio=0.1' for 10 %%",
    )
    parser.add_argument("--absolute", action="store_true", help="time and energy themselves count, too")
    parser.add_argument("--fail-on-regression", action="store_true", help="end with 1 or 2, as above")
    parser.add_argument("--json", type=Path, help="also write everything here")
    parser.add_argument("--markdown", type=Path, help="also write the printed text here")
    args = parser.parse_args(argv)
    if args.methods:
        if args.results is None or args.earlier is not None:
            parser.error("--methods compares two methods of the one result that --results names")
        if args.fail_on_regression or args.tolerate or args.absolute:
            parser.error("--tolerate, --absolute and --fail-on-regression are for two results")
    elif args.results is not None or args.now is None:
        parser.error("name two results, EARLIER NOW, or --results FOLDER --methods A B")
    try:
        outcome, written, found = _methods(args) if args.methods else _results(args)
        if args.json:
            write_json(args.json, found)
        if args.markdown:
            with atomic_path(args.markdown) as temporary:
                temporary.write_text(written, encoding="utf-8")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return command.NO_VERDICT
    print(written, end="")
    return CODES[outcome] if args.fail_on_regression else 0


def _results(args):
    """(outcome, text, JSON) of two results."""
    sides = result_folder.read(args.earlier), result_folder.read(args.now)
    found = comparison.compare(*sides, tolerated=dict(args.tolerate), absolute=args.absolute)
    return found.outcome, text.comparison(found), found.as_json()


def _methods(args):
    """The same of two methods, without an outcome: neither of them is the earlier one."""
    found = two_methods.compare(result_folder.read(args.results), *args.methods)
    written = text.methods(found, args.results, *args.methods)
    return None, written, {"results": args.results, "methods": args.methods, "changes": list(map(asdict, found))}


if __name__ == "__main__":
    command.run(main)
