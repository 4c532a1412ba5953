"""Read files of texts: labelled sentences in the style of the GLUE tasks, and running text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantwatt.artifacts import text_files, text_tables
from quantwatt.artifacts.errors import DataError

if TYPE_CHECKING:
    import torch

HEADINGS = ("sentence", "text", "review")


def read_sentences(path: str | Path) -> tuple[list[str], list[int] | list[str] | None]:
    """Read sentences and their labels.

    Args:
        path: a table (`quantwatt.artifacts.text_tables`) with tabs between its columns, or a .csv file, with the
            headings `sentence` (or `text`, `review`) and `label` (or `sentiment`, `class`, `target`), as in SST-2's
            dev.tsv; or a list with one sentence per line.
    Returns:
        (sentences, labels); labels are all whole numbers or all names; None for a file without labels.
    Raises:
        DataError: the file is missing, empty or not a text, its headings are unknown, or a row has no label.
    """
    column = text_tables.read_column(path, HEADINGS, text_tables.LABELS)
    text_files.say(path, column.notes)
    if column.labels is None:
        return column.texts, None
    return column.texts, _labels(path, column)


def _labels(path, column):
    """A column's labels: all whole numbers, or all names."""
    numbered = column.labels[0].isdecimal()
    for label, line in zip(column.labels, column.numbers, strict=True):
        if not label or label.startswith("-"):  # data sets write -1 for unpublished labels
            raise DataError(f"{path}: line {line}: the label is {label!r}, not a whole number from 0 or a name.")
        if label.isdecimal() != numbered:
            kind = "a whole number" if numbered else "a name"
            raise DataError(f"{path}: line {line}: the label is {label!r}, and the labels before it are each {kind}.")
    return [int(label) for label in column.labels] if numbered else column.labels


def read_running_text(path: str | Path) -> tuple[list[str], None]:
    """Read running text: ([the whole file], None), as it has no labels.

    Raises:
        DataError: the file is missing, empty or not a text.
    """
    text, notes = text_files.read(path)
    text_files.say(path, notes)
    return [text], None


def cut(items: "Sequence[str] | torch.Tensor", size: int, count: int, what: str) -> list[Any]:
    """The first `count` batches of `size` items.

    Args:
        what: the plural noun for the items, for the message.
    Raises:
        DataError: there are too few items.
    """
    if len(items) < size * count:
        raise DataError(f"{len(items)} {what} are too few for {count} batch{'es' if count > 1 else ''} of {size}.")
    return [items[first : first + size] for first in range(0, size * count, size)]
