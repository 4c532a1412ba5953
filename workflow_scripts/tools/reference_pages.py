"""Write docs/reference/: settings from the schemas, commands from their parsers, rules, files and columns of tables."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder with quantwatt

from quantwatt.artifacts.manifest import PROJECT
from quantwatt.jobs import command
from tools.documentation import commands, results, settings

REFERENCE = PROJECT / "docs" / "reference"


def pages():
    """{file: text} of all generated pages."""
    return settings.pages() | commands.pages() | results.pages()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=REFERENCE, help="folder of the pages")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    for file, text in pages().items():
        (args.output / file).write_text(text)
    print(f"{args.output}: {len(pages())} pages")


if __name__ == "__main__":
    command.run(main)
