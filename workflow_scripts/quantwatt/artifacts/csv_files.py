"""Write CSV files; no other module does."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantwatt.artifacts.manifest import atomic_path


def write(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a header and the rows as CSV, completely or not at all; None is an empty field, floats keep all digits.

    Args:
        columns: names, in order; rows: dictionaries with no other keys.
    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
