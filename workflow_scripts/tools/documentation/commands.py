"""The page of commands: every script that a person may run, with its options, read from its own parser."""

import argparse
import ast
import importlib
from collections.abc import Callable
from unittest import mock

from quantwatt.artifacts.manifest import PROJECT
from tools.documentation import code, page, plain, table

SCRIPTS = PROJECT / "workflow_scripts"
FOLDERS = {  # {folder: (heading, what its scripts are)}
    "tools": ("Tools", "For a person, beside the workflow."),
    "": ("Rules' scripts", "Each rule runs the script of its name; it also works by itself."),
    "benchmarks": ("Benchmarks", "What the figures of this documentation come from; `make` runs them."),
    "training": ("Training", "Of the embedded models."),
}


class Asked(Exception):
    """A script has made its parser and would now read the command line."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__(parser.prog)
        self.parser = parser


def parser_of(main: Callable[[list[str]], object]) -> argparse.ArgumentParser:
    """The parser that a script's `main` makes, taken when it is about to be used: nothing of the script runs."""

    def stop(parser, *_, **__):
        raise Asked(parser)

    with (
        mock.patch("argparse.ArgumentParser.parse_args", stop),
        mock.patch("argparse.ArgumentParser.parse_known_args", stop),
    ):
        try:
            main([])
        except Asked as asked:
            return asked.parser
    raise TypeError(f"{main.__module__}.main makes no parser.")


def scripts(folder: str) -> dict[str, argparse.ArgumentParser]:
    """{path below workflow_scripts/: parser} of the scripts of a folder."""
    found = {}
    for path in sorted((SCRIPTS / folder).glob("*.py")):
        if "__main__" in path.read_text():
            name = path.relative_to(SCRIPTS)
            module = importlib.import_module(".".join(name.with_suffix("").parts))
            found[str(name)] = parser_of(module.main)
    return found


def summary(path: str) -> str:
    """The first sentence of a script's docstring."""
    return (ast.get_docstring(ast.parse((SCRIPTS / path).read_text())) or "").split("\n\n")[0].replace("\n", " ")


def options(parser: argparse.ArgumentParser) -> list[list[str]]:
    """A row for each option but --help: as it is written, its default, its meaning."""
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        takes = action.nargs != 0
        value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
        value = " ".join(value) if isinstance(value, tuple) else str(value)
        more = " ..." if action.nargs in ("+", "*") else ""
        written = f"{action.option_strings[-1]} {value}{more}" if action.option_strings else f"{value}{more}"
        shown = written if takes else action.option_strings[-1]
        hidden = action.default in (None, argparse.SUPPRESS, False) or action.required
        said = ((action.help or "") % {**vars(action), "prog": parser.prog}).replace(f"{PROJECT}/", "")
        default = "*must be given*" if action.required and action.option_strings else "" if hidden else _shown(action)
        rows.append([code(shown), default, plain(said)])
    return rows


def _shown(action):
    value = action.default
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return code(text.replace(f"{PROJECT}/", ""))


def pages() -> dict[str, str]:
    """{file: text} of all scripts."""
    parts = ["`.venv/bin/python workflow_scripts/SCRIPT --help` prints the same."]
    for folder, (heading, what) in FOLDERS.items():
        parts += [f"## {heading}", what]
        for name, parser in scripts(folder).items():
            parts += [f"### {name}", plain(summary(name)), table(("option", "default", "meaning"), options(parser))]
    return {"commands.md": page("Commands", *parts)}
