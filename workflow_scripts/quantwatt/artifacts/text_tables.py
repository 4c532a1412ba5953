"""Read lists of texts, one per line, and tables with a column of texts; a table is never read as a list."""

import csv
import io
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from quantwatt.artifacts import text_files
from quantwatt.artifacts.errors import DataError

LABELS = ("label", "labels", "class", "sentiment", "target")  # headings of a column of labels
NUMBERED = re.compile(r'\s*"?-?\d+"?\s*[,;|].*|.*[,;|]\s*"?-?\d+"?\s*')  # a column of whole numbers, first or last


class Column(NamedTuple):
    """The texts of a list or table; their labels as written, or None; their line numbers; notes of the reader."""

    texts: list[str]
    labels: list[str] | None
    numbers: list[int]
    notes: list[str]


def read_column(path: str | Path, names: Collection[str], labels: Collection[str] = ()) -> Column:
    """Read the texts of a list, or of the column of a table that has a known heading.

    A table is a file with tabs between its columns or a file named *.csv. Fields of a .csv file may be quoted. With
    tabs, a quotation mark is an ordinary character, as in the GLUE tasks, unless the headings are quoted. The first
    line names the columns, in upper or lower case.

    Args:
        names: possible headings of the column, in lower case.
        labels: possible headings of an optional second column, such as labels.
    Returns:
        Column.
    Raises:
        DataError: the file is not a text or is empty (see `text_files.read`), the headings of the table are unknown, or
            a row lacks a field.
    """
    text, notes = text_files.read(path)
    separator = _separator(path, text_files.head_of(text), names)
    if separator is None:
        return _list(path, text_files.lines_of(text, notes), names)
    (first, headings), *rows = _rows(path, text, separator)
    chosen, labelled = (_place(path, headings, wanted) for wanted in (names, labels))
    for number, row in rows:
        if len(row) != len(headings):
            raise DataError(f"{path}: line {number} has {len(row)} columns, and line {first} names {len(headings)}.")
        if not row[chosen]:
            raise DataError(f"{path}: line {number}: the column '{headings[chosen]}' is empty.")
    if not rows:
        raise DataError(f"{path}: there is nothing below its headings.")
    if others := [heading for number, heading in enumerate(headings) if number not in (chosen, labelled)]:
        notes = [*notes, f"the column '{headings[chosen]}' is read, and {', '.join(map(repr, others))} not"]
    of_labels = None if labelled is None else [row[labelled] for _, row in rows]
    return Column([row[chosen] for _, row in rows], of_labels, [number for number, _ in rows], notes)


def _separator(path, head, names):
    """The character between the columns of a table with this first line; None for a list.

    Raises:
        DataError: a .csv file lacks the headings, or a table separated by commas or semicolons has another suffix.
    """
    named = {separator: _headings(head, separator) for separator in "\t,;"}
    fitting = [separator for separator, headings in named.items() if not headings.isdisjoint(names)]
    between = next((separator for separator in fitting if separator in head), None)
    suffix = Path(path).suffix.lower()
    if suffix == ".csv" and not fitting:
        raise DataError(
            f"{path}: line 1 is {head[:60]!r}, and no column is called {' or '.join(names)}; name it there."
        )
    if suffix == ".csv":
        return between or ","
    if between in (",", ";") and (named[between] <= {*names, *LABELS} or not named[between].isdisjoint(LABELS)):
        raise DataError(
            f"{path}: the columns are separated by {between!r}; separate them by tabs, or let the file's name end in "
            ".csv."
        )
    return between if between == "\t" else None


def _headings(head, separator):
    return {text_files.trimmed(name).strip('"').lower() for name in head.split(separator)}


def _rows(path, text, separator):
    """[(line number, trimmed fields)] of the non-blank rows."""
    quoted = separator != "\t" or text.lstrip()[:1] == '"'
    lines = io.StringIO(text, newline="")
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader, rows, begun = csv.reader(lines, delimiter=separator, strict=quoted, quoting=quoting), [], 1
    try:
        for row in reader:
            fields = [text_files.trimmed(field) for field in row]
            if any(fields):
                rows.append((begun, fields))
            begun = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: the row that begins in line {begun} is not a row of a table ({error}).") from error
    return rows


def _place(path, headings, wanted):
    """The number of the column with one of the wanted headings; None where no column has one.

    Raises:
        DataError: several columns have one.
    """
    columns = [number for number, heading in enumerate(headings) if heading.lower() in wanted]
    if len(columns) > 1:
        both = " and ".join(f"'{headings[number]}'" for number in columns)
        raise DataError(f"{path}: line 1: {both} could both be the column to read; rename or remove one.")
    return columns[0] if columns else None


def _list(path, listed, names):
    """Convert the lines of a list to a column, without the heading that the list may have."""
    if listed.lines[0].lower().strip('"') in names:
        notes = [*listed.notes, f"line {listed.numbers[0]}, {listed.lines[0]!r}, is the heading"]
        return Column(listed.lines[1:], None, listed.numbers[1:], notes)
    _refuse_table(path, listed, names)
    tabs = text_files.counted(sum("\t" in line for line in listed.lines), "line{s} with a tab within, kept whole")
    return Column(listed.lines, None, listed.numbers, listed.notes + tabs)


def _refuse_table(path, listed, names):
    """Refuse a list that is a table, or JSON.

    Raises:
        DataError: the first line, or every line after it, has columns.
    """
    text_files.refuse_json(path, listed.lines)
    if "\t" in listed.lines[0]:
        raise DataError(
            f"{path}: line {listed.numbers[0]} has tabs, as a table's headings do, and no column is called "
            f"{' or '.join(names)}; name it there."
        )
    body = listed.lines[1:]
    if body and all(NUMBERED.fullmatch(line) for line in body):
        raise DataError(
            f"{path}: every line from {listed.numbers[1]} on has a column of whole numbers; let the file's name end in "
            f".csv, and line 1 name the columns (that of the texts {' or '.join(names)})."
        )
