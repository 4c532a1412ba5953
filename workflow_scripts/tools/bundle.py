"""Pack a finished result into one file of at most 5 MB that can be given to others: settings, figures, small images.

Example:
  python workflow_scripts/tools/bundle.py --results results/embedded
writes results/embedded/bundle.zip; workflow_scripts/tools/book.py makes a page of any number of bundles. No weights are
packed, and no absolute paths, user or host names: a bundle that would hold one is refused. Pack a result where it was
measured: the names of other machines and users are not known elsewhere. Equal results packed for the same day give the
same bytes.
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path
from quantwatt.config import experiment as configuration
from quantwatt.config.schemas import ConfigurationError
from quantwatt.jobs import command
from quantwatt.report.book import packing, reading
from quantwatt.report.book.privacy import Privacy


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="the experiment's folder, results/EXPERIMENT")
    parser.add_argument(
        "--experiment",
        help="a name of resources/experiments/, whose settings the results are held against and that are packed "
        "(default: the folder's name, if there is one of this name)",
    )
    parser.add_argument("--date", help="YYYY-MM-DD, the day of the measurements (default: by the files' dates)")
    parser.add_argument(
        "--keep", action="append", default=[], metavar="WORD",
        help="may stand, although this user or this host has the name; repeat the option for other words",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="output (default: RESULTS/bundle.zip)")
    args = parser.parse_args(argv)
    try:
        date = args.date and datetime.date.fromisoformat(args.date).isoformat()
    except ValueError as error:
        raise DataError(f"--date: '{args.date}' is no day of the form YYYY-MM-DD.") from error
    name = args.experiment or args.results.resolve().name
    known = args.experiment or (configuration.EXPERIMENTS / f"{name}.yaml").exists()
    try:
        settings = configuration.load_experiment(name, "--experiment") if known else None
    except ConfigurationError as error:
        raise DataError(str(error)) from error
    result = packing.read_result(args.results, name, settings)
    packed = packing.bundle(result, Privacy.of_this_machine(args.keep), date or packing.measured_on(result))
    output = args.output or args.results / "bundle.zip"
    with atomic_path(output) as temporary:
        temporary.write_bytes(packed)
        try:
            reading.read_bundle(temporary)  # as a stranger will
        except DataError as error:
            raise DataError(str(error).replace(str(temporary), str(output))) from error
    print(f"{output}: {len(packed):,} bytes")


if __name__ == "__main__":
    command.run(main)
