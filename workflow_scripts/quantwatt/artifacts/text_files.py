"""The one reader of text files: prompts, captions, tables and running text, as people save them.

Planning and jobs read through it alike, so that both see the same lines. What it had to do to a file is told in notes,
which are said once and recorded; what it would have to guess, it refuses. No torch here: planning imports it.
"""

import codecs
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from quantwatt.artifacts.errors import DataError

MARKS = (  # byte order marks, the longer ones first
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
UNSEEN = "\ufeff\u200b\u200c\u200d\u2060\u00ad"  # characters without width, as pasting and joining files leave them
SEPARATORS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")  # str.splitlines ends a line there, editors do not
_said = {}  # {path: notes} of the files that were read


class Text(NamedTuple):
    """A whole file's text, its lines ended by line feeds, and what was done to it: sentences without a full stop."""

    text: str
    notes: list[str]


class Lines(NamedTuple):
    """The lines of a file that hold something, their numbers in the file (from 1), and what was done to it."""

    lines: list[str]
    numbers: list[int]
    notes: list[str]


def read(path: str | Path) -> Text:
    """The text of a file, decoded.

    UTF-8 with or without byte order mark, and UTF-16 and UTF-32 with theirs. Lines may end in any way that editors
    know: line feed, carriage return, both.

    Returns:
        Text.
    Raises:
        DataError: the file cannot be read, is empty, is no text, or is in another encoding.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror}).") from error
    mark, encoding, name = next((known for known in MARKS if content.startswith(known[0])), (b"", "utf-8", "UTF-8"))
    content = content[len(mark) :]
    if name == "UTF-8":
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\0" in content:
            raise DataError(
                f"{path}: line {_line(content, content.index(0))} holds a zero byte: the file is no text, or UTF-16 "
                "without byte order mark; save it as UTF-8."
            )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {_undecodable(content, error, name)}") from error
    if not trimmed(text):
        raise DataError(f"{path}: the file is empty.")
    notes = [f"its byte order mark says {name}"] if name != "UTF-8" else []
    return Text(text.replace("\r\n", "\n").replace("\r", "\n"), notes)


def lines_of(text: str, notes: Iterable[str] = ()) -> Lines:
    """The lines of a text that hold something.

    Blanks and characters without width at the ends of a line are cut off, and blank lines left out, since nobody sees
    them in an editor. Only what ends a line there does here: a Unicode line separator within a line stays in it.

    Args:
        text, notes: as of `read`.
    Returns:
        Lines.
    """
    every = text.split("\n")
    every = every[:-1] if not every[-1] else every  # the end of the last line begins no other
    found = [(number, line, trimmed(line)) for number, line in enumerate(every, start=1)]
    kept = [(number, line, cut) for number, line, cut in found if cut]
    lines = [cut for _, _, cut in kept]
    notes = [
        *notes,
        *counted(len(every) - len(kept), "blank line{s} left out"),
        *counted(sum(line != cut for _, line, cut in kept), "line{s} without the blanks at the ends"),
        *counted(
            sum(bool(SEPARATORS.search(cut)) for _, _, cut in kept), "line{s} with a separator within, kept whole"
        ),
    ]
    return Lines(lines, [number for number, _, _ in kept], notes)


def head_of(text: str) -> str:
    """The first line of a text that holds something, with the tabs at its ends."""
    return next(line for line in text.split("\n") if trimmed(line)).strip(f" {UNSEEN}")


def refuse_json(path: str | Path, lines: Sequence[str]) -> None:
    """Refuse a list whose lines are JSON.

    Raises:
        DataError: the first line is an object or a list.
    """
    first = lines[0]
    if first[0] in "[{" and (first in "[{" or _is_json(first)):
        raise DataError(f"{path}: line 1 is JSON; write one entry a line, as plain text.")


def say(path: str | Path, notes: list[str]) -> None:
    """Tell on stderr what was done to a file, once however often it is read, and remember it for `said`."""
    if notes and _said.get(str(path)) != notes:
        print(f"{path}: {'; '.join(notes)}.", file=sys.stderr)
    _said[str(path)] = notes


def said(path: str | Path) -> list[str]:
    """The notes of what was done to a file when it was read, for a manifest."""
    return _said.get(str(path), [])


def _is_json(text):
    try:
        return isinstance(json.loads(text), (dict, list))
    except ValueError:
        return False


def trimmed(text: str) -> str:
    """Without the blanks and the characters without width at its ends, in whatever order they stand there."""
    before = None
    while text != before:
        before, text = text, text.strip().strip(UNSEEN)
    return text


def counted(count: int, words: str) -> list[str]:
    """[a note] of how many, or [] of none; `{s}` stands where the plural has one."""
    return [f"{count} {words.format(s='' if count == 1 else 's')}"] if count else []


def _undecodable(content, error, name):
    """Why bytes are not of the encoding, and where."""
    if name != "UTF-8":
        return f"byte {error.start} is not {name}, as its byte order mark says; save it as UTF-8."
    column = error.start - content.rfind(b"\n", 0, error.start)
    return (
        f"line {_line(content, error.start)}, byte {column} (0x{content[error.start]:02X}) is not UTF-8 (is it Latin-1 "
        "or Windows-1252?); save the file as UTF-8."
    )


def _line(content, position):
    return content.count(b"\n", 0, position) + 1
