"""Files of texts: labelled sentences as the GLUE tasks have them, and running text."""

from quantwatt.artifacts import text_files, text_tables
from quantwatt.artifacts.errors import DataError

HEADINGS = ("sentence", "text", "review")


def read_sentences(path):
    """Sentences and their labels.

    Args:
        path: a table (`quantwatt.artifacts.text_tables`) with tabs between its columns, or a .csv file, whose
            headings name `sentence` (or `text`, `review`) and `label` (or `sentiment`, `class`, `target`), as SST-2's
            dev.tsv does; or one sentence a line.
    Returns:
        (sentences, labels); labels are whole numbers, or all of them names, or None where the file has none.
    Raises:
        DataError: the file is missing, empty or no text, its headings are not known, or a row has no label.
    """
    column = text_tables.read_column(path, HEADINGS, text_tables.LABELS)
    text_files.say(path, column.notes)
    if column.labels is None:
        return column.texts, None
    return column.texts, _labels(path, column)


def _labels(path, column):
    """A column's labels: whole numbers, or all of them names."""
    numbered = column.labels[0].isdecimal()
    for label, line in zip(column.labels, column.numbers, strict=True):
        if not label or label.startswith("-"):  # data sets mark a label that is not published by -1
            raise DataError(f"{path}: line {line}: the label is {label!r}, not a whole number from 0 or a name.")
        if label.isdecimal() != numbered:
            kind = "a whole number" if numbered else "a name"
            raise DataError(f"{path}: line {line}: the label is {label!r}, and the labels before it are each {kind}.")
    return [int(label) for label in column.labels] if numbered else column.labels


def read_running_text(path):
    """([the whole file], None): running text has no labels.

    Raises:
        DataError: the file is missing, empty or no text.
    """
    text, notes = text_files.read(path)
    text_files.say(path, notes)
    return [text], None


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
