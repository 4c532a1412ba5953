"""Make one page of any number of bundles: what quantizing costs and saves, by model, method and device.

Example:
  python workflow_scripts/tools/book.py results/*/bundle.zip --output results/book.html
The page loads nothing else. A bundle that is malformed is refused with exit code 1, or left out with --skip-bad.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT, atomic_path
from quantwatt.jobs import command
from quantwatt.report.book import page, reading

SHIPPED = PROJECT / "resources" / "book"
TEMPLATE = PROJECT / "resources" / "report" / "book.html"


def read_all(paths: Sequence[Path], skip_bad: bool) -> tuple[list[reading.Bundle], int]:
    """(the bundles, each once; number of those left out).

    Raises:
        DataError: a bundle is malformed and not skipped, or none is left.
    """
    found: dict[str, reading.Bundle] = {}
    refused = 0
    for path in paths:
        try:
            bundle = reading.read_bundle(path)
        except DataError as error:
            if not skip_bad:
                raise DataError(f"{error} (--skip-bad leaves such bundles out)") from error
            print(f"left out: {error}", file=sys.stderr)
            refused += 1
            continue
        if bundle.sha256 in found:
            print(f"{path}: the same bundle as {found[bundle.sha256].file}; it counts once.", file=sys.stderr)
        found.setdefault(bundle.sha256, bundle)
    if not found:
        raise DataError("there is no bundle to show; pack a result with workflow_scripts/tools/bundle.py.")
    return list(found.values()), refused


def write_labels(devices: Sequence[page.Device], methods: Sequence[str], folder: Path) -> None:
    """Write the energy labels of methods as SVG files, one for each model, sampling and device.

    Raises:
        DataError: no bundle has the method, or none has read its energy.
    """
    lines = [(table, line) for device in devices for table in device.tables for line in table.lines]
    labels = {}
    for method in methods:
        found = [(table, line, line.label) for table, line in lines if line.row["method"] == method]
        if not found:
            raise DataError(f"--label: no bundle has the method '{method}'.")
        if not any(drawn for *_, drawn in found):
            raise DataError(f"--label: no energy was read of '{method}': {found[0][1].mark}.")
        for table, line, drawn in found:
            if drawn:
                named = f"{table.bundle.manifest['experiment']}-{table.model}-{table.sampling}-{method}"
                # Names are a stranger's: a file's name holds neither a separator nor a dot at its front.
                stem = f"label-{re.sub(r'[^A-Za-z0-9._-]+', '_', named)[:150]}"
                labels[stem if stem not in labels else f"{stem}-{line.place}"] = drawn
    for stem, drawn in labels.items():
        with atomic_path(folder / f"{stem}.svg") as temporary:
            temporary.write_text(drawn, encoding="utf-8")
        print(folder / f"{stem}.svg")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "bundles", type=Path, nargs="*", metavar="BUNDLE", help="files of bundle.py (default: resources/book/*.zip)"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave malformed bundles out, with a sentence on stderr"
    )
    parser.add_argument(
        "--label", action="append", default=[], metavar="METHOD",
        help="also write this method's energy labels beside the page, as SVG; repeat the option for other methods",
    )  # fmt: skip
    parser.add_argument("--template", type=Path, default=TEMPLATE, help="jinja2 template (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results/book.html"), help="output (default: %(default)s)")
    args = parser.parse_args(argv)
    bundles, refused = read_all(args.bundles or sorted(SHIPPED.glob("*.zip")), args.skip_bad)
    text = page.render(args.template, bundles, refused)
    write_labels(page.devices(bundles), args.label, args.output.parent)
    with atomic_path(args.output) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{args.output}: {len(bundles)} bundles, {len(text.encode()):,} bytes")


if __name__ == "__main__":
    command.run(main)
