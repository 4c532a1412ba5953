"""Tables in Markdown, for a comment on a pull request."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table; what would end a cell or a line is escaped, and HTML shown as it is written."""
    marks = ("---" for _ in heads)
    return ["| " + " | ".join(map(cell, row)) + " |" for row in (heads, marks, *rows)]


def cell(value: Any) -> str:
    """One cell; nothing for None."""
    text = "" if value is None else str(value)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def figure(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A figure with its interval, where it has one."""
    if value is None:
        return "none"
    return f"{value:.4g}" + ("" if low is None or high is None or low == high else f" [{low:.4g}, {high:.4g}]")
