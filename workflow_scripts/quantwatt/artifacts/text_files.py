"""Read text files as people save them: prompts, captions, tables and running text.

Planning and jobs both use this reader, so that they get the same lines. Every change that it makes to a file's text is
described in notes, which are printed once and recorded in manifests. Ambiguous files are refused. It must not import
torch, because planning imports it.
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
UNSEEN = "\ufeff\u200b\u200c\u200d\u2060\u00ad"  # zero-width characters, which pasting and joining files leave behind
SEPARATORS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")  # line ends for str.splitlines, but not in editors
_said = {}  # {path: notes} of the files that were read


class Text(NamedTuple):
    """A file's text with line feeds as line ends; notes on changes, sentences without a full stop."""

    text: str
    notes: list[str]


class Lines(NamedTuple):
    """The non-blank lines of a file, their numbers in the file (from 1), and notes on changes."""

    lines: list[str]
    numbers: list[int]
    notes: list[str]


def read(path: str | Path) -> Text:
    """Decode the text of a file.

    The encoding is UTF-8 with or without a byte order mark, or UTF-16 or UTF-32 with one. Lines may end in a line feed,
    a carriage return or both.

    Returns:
        Text.
    Raises:
        DataError: the file cannot be read, is empty, is not a text, or has another encoding.
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
    """The non-blank lines of a text.

    Whitespace and zero-width characters at the ends of a line are removed, and blank lines are left out: editors do not
    show them. A Unicode line separator does not end a line, as in editors.

    Args:
        text, notes: as `read` returns them.
    Returns:
        Lines.
    """
    every = text.split("\n")
    every = every[:-1] if not every[-1] else every  # no further line begins after the last line end
    numbered = [(number, line, trimmed(line)) for number, line in enumerate(every, start=1)]
    kept = [(number, line, cut) for number, line, cut in numbered if cut]
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
    """The first non-blank line of a text; tabs at its ends are kept."""
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
    """Print notes on a file to stderr, once even if it is read several times, and keep them for `said`."""
    if notes and _said.get(str(path)) != notes:
        print(f"{path}: {'; '.join(notes)}.", file=sys.stderr)
    _said[str(path)] = notes


def said(path: str | Path) -> list[str]:
    """The notes on changes to a file when it was read, for a manifest."""
    return _said.get(str(path), [])


def _is_json(text):
    try:
        return isinstance(json.loads(text), (dict, list))
    except ValueError:
        return False


def trimmed(text: str) -> str:
    """A text without whitespace and zero-width characters at its ends, in any order."""
    before = None
    while text != before:
        before, text = text, text.strip().strip(UNSEEN)
    return text


def counted(count: int, words: str) -> list[str]:
    """[a note] with a count, or [] for zero; `{s}` in `words` becomes the plural's s."""
    return [f"{count} {words.format(s='' if count == 1 else 's')}"] if count else []


def _undecodable(content, error, name):
    """Why and where bytes are not in the encoding: a sentence."""
    if name != "UTF-8":
        return f"byte {error.start} is not {name}, as its byte order mark says; save it as UTF-8."
    column = error.start - content.rfind(b"\n", 0, error.start)
    return (
        f"line {_line(content, error.start)}, byte {column} (0x{content[error.start]:02X}) is not UTF-8 (is it Latin-1 "
        "or Windows-1252?); save the file as UTF-8."
    )


def _line(content, position):
    return content.count(b"\n", 0, position) + 1
