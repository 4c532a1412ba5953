"""Read files of prompts: one per line, or a table, whose prompts may have an input picture each."""

import itertools
from pathlib import Path

from quantwatt.artifacts import text_files, text_tables
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.instructions import Instruction

HEADINGS = ("prompt", "prompts", "caption", "captions", "text")
PICTURES = ("input_image", "input_picture")  # headings of the input pictures; captions have a column `image`, too
CATEGORIES = ("category", "categories", "tag")
EMPTY = '""'  # a line with only this is the empty prompt, for unconditional images


def read(path: str | Path) -> tuple[list[str], list[str]]:
    """Read the prompts of a file: a list, or a table with a column of prompts (`quantwatt.artifacts.text_tables`).

    Blank lines are not prompts: an accidental blank line would silently move every later prompt to another seed. A line
    with only two quotation marks is the empty prompt. Paths of input pictures are relative to the file's folder.

    Returns:
        (list of str, of `Instruction` where there are input pictures; notes of the reader).
    Raises:
        DataError: the file cannot be read, is empty, is not a text, is a table without a column of prompts, or names a
            picture that does not exist.
    """
    column = text_tables.read_column(path, HEADINGS, PICTURES)
    if not column.texts:
        raise DataError(f"{path}: there is no prompt in it.")
    texts = ["" if text == EMPTY else text for text in column.texts]
    if column.labels is None:
        return texts, column.notes
    for name, number in zip(column.labels, column.numbers, strict=True):
        if not name or not (Path(path).parent / name).is_file():
            raise DataError(
                f"{path}: line {number}: there is no picture '{name}' (beside this file, if it is relative)."
            )
    return [
        Instruction(text, Path(path).parent / name) for text, name in zip(texts, column.labels, strict=True)
    ], column.notes


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
