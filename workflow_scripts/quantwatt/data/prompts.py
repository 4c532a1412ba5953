"""The prompts of a sampling: one a line of its file, or its lines over and over."""

import itertools

from quantwatt.artifacts import text_files, text_tables
from quantwatt.artifacts.errors import DataError

HEADINGS = ("prompt", "prompts", "caption", "captions", "text")
EMPTY = '""'  # a line that holds only this is the empty prompt, which unconditional images have


def read(path):
    """The prompts of a file: a list, or a table with a column of prompts (`quantwatt.artifacts.text_tables`).

    Blank lines are no prompts: where one stands by mistake, every prompt after it would move to another seed unseen.
    A line of two quotation marks is the empty prompt.

    Returns:
        (list of str, notes of what the reader did).
    Raises:
        DataError: the file cannot be read, is empty, is no text, or is a table without a column of prompts.
    """
    column = text_tables.read_column(path, HEADINGS)
    if not column.texts:
        raise DataError(f"{path}: there is no prompt in it.")
    return ["" if text == EMPTY else text for text in column.texts], column.notes


def read_and_say(path):
    """The prompts of a file; what the reader did is said on stderr. Raises as `read`."""
    found, notes = read(path)
    text_files.say(path, notes)
    return found


def first(sampling, count):
    """The first `count` prompts of a sampling; with `cycle` its lines are taken again from the first.

    Returns:
        list of str, fewer where the file has fewer lines and is not taken again.
    Raises:
        DataError: as `read`.
    """
    found = read_and_say(sampling["prompts"])
    return list(itertools.islice(itertools.cycle(found), count)) if sampling.get("cycle") else found[:count]
