"""Files of texts: labelled sentences as the GLUE tasks have them, and running text."""

import csv
from pathlib import Path

from quantwatt.manifest import DataError


def read_sentences(path):
    """Sentences and their labels.

    Args:
        path: a table with tabs between its columns and a header that names `sentence` and `label` (SST-2's dev.tsv), or
            one sentence a line. Only line feeds end a line.
    Returns:
        (sentences, labels); labels are whole numbers, or None where the file has none.
    Raises:
        DataError: the file is missing or empty, its columns are separated by something else, or a row has no label.
    """
    lines = _text(path).split("\n")
    header = lines[0].split("\t")
    if "sentence" not in header:
        for separator in ",;":
            if {"sentence", "label"} <= {name.strip(' "') for name in lines[0].split(separator)}:
                raise DataError(f"{path}: the columns are separated by {separator!r}; separate them by tabs.")
        return [line for line in lines if line.strip()], None
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if "label" not in header:
        return [row["sentence"].strip() for row in rows], None
    for number, row in enumerate(rows, start=2):
        if not (row["label"] or "").strip().isdecimal():
            raise DataError(f"{path}: line {number}: the label is {row['label']!r}, not a whole number.")
    return [row["sentence"].strip() for row in rows], [int(row["label"]) for row in rows]


def read_running_text(path):
    """([the whole file], None): running text has no labels.

    Raises:
        DataError: the file is missing or empty.
    """
    return [_text(path)], None


def cut(items, size, count, what):
    """The first `count` batches of `size` items.

    Args:
        what: the items in a word, for the message.
    Raises:
        DataError: there are not so many.
    """
    if len(items) < size * count:
        raise DataError(f"{len(items)} {what} are too few for {count} batch{'es' if count > 1 else ''} of {size}.")
    return [items[first : first + size] for first in range(0, size * count, size)]


def _text(path):
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"{path}: the texts cannot be read ({reason}).") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty.")
    return text
