"""Read files of prompts: one per line."""

import itertools
from pathlib import Path

from quantwatt.artifacts import text_files, text_tables
from quantwatt.artifacts.errors import DataError

HEADINGS = ("prompt", "prompts", "caption", "captions", "text")
CATEGORIES = ("category", "categories", "tag")
EMPTY = '""'  # a line with only this is the empty prompt, for unconditional images


def read(path: str | Path) -> tuple[list[str], list[str]]:
    """Read the prompts of a file: a list, or a table with a column of prompts (`quantwatt.artifacts.text_tables`).

    Blank lines are not prompts: an accidental blank line would silently move every later prompt to another seed. A line
    with only two quotation marks is the empty prompt.

    Returns:
        (list of str, notes of the reader).
    Raises:
        DataError: the file cannot be read, is empty, is not a text, or is a table without a column of prompts.
    """
    column = text_tables.read_column(path, HEADINGS)
    if not column.texts:
        raise DataError(f"{path}: there is no prompt in it.")
    return ["" if text == EMPTY else text for text in column.texts], column.notes


def categories(path: str | Path) -> list[str] | None:
    """The category of each prompt of a file; None where it is a list, or has no such column. Raises as `read`."""
    return text_tables.read_column(path, HEADINGS, CATEGORIES).labels


def read_and_say(path: str | Path) -> list[str]:
    """Read the prompts of a file and print the reader's notes to stderr. Raises as `read`."""
    prompts, notes = read(path)
    text_files.say(path, notes)
    return prompts


def first(path: str | Path, count: int, cycle: bool = False) -> list[str]:
    """The first `count` prompts of a file; with `cycle` its lines are repeated.

    Returns:
        list of str; without `cycle` it may be shorter than `count`.
    Raises:
        DataError: see `read`.
    """
    prompts = read_and_say(path)
    return list(itertools.islice(itertools.cycle(prompts), count)) if cycle else prompts[:count]
