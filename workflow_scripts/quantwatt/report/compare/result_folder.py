"""Read a finished result from its folder, whichever version of quantwatt wrote it.

The summary names the cells; the stages' files beside it are read where they are there. A result that was copied without
its images, or without all but its tables, is compared by what it still holds.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantwatt.artifacts import layout
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.report import tables
from quantwatt.report.cells import Cell, with_arrays

KEY = ("model", "sampling", "method")
NEEDED = (*KEY, "status")  # columns without which a table is no summary

Key = tuple[str, str, str]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """A finished result.

    folder: as it was given, for messages.
    rows: {(model, sampling, method): row of the summary}, in its order; with all of tables.SUMMARY_COLUMNS: what an
        earlier version did not write is NaN.
    """

    folder: str
    rows: Mapping[Key, Row]

    def baseline_of(self, key: Key) -> str | None:
        """The unquantized method of a row's model and sampling; None without one."""
        alike = (other for other, row in self.rows.items() if other[:2] == key[:2] and row["baseline"])
        return next((method for _, _, method in alike), None)

    def cell(self, key: Key) -> Cell:
        """The files of one row; one that is missing is {"status": "missing", "reason"}."""
        names = dict(zip(KEY, key, strict=True))
        images = self._read("images", names)
        if images["status"] == "missing" and (texts := self._read("predictions", names))["status"] != "missing":
            images = texts
        images.pop("images", None)  # of 50,000 images 40 MB
        scores = dict(self._scores(names))
        checkpoint, measurement = (self._read(file, names) for file in ("checkpoint", "measurement"))
        return Cell(**names, checkpoint=checkpoint, images=images, measurement=measurement, scores=scores)

    def _scores(self, names) -> Iterator[tuple[str, dict[str, Any]]]:
        for metric in tables.METRICS:
            score = self._read("score", names | {"metric": metric})
            if score["status"] != "missing":
                yield metric, with_arrays(score)

    def _read(self, file, names):
        path = layout.path(self.folder, file, names)
        if not path.exists():
            return {"status": "missing", "reason": f"{path}: the file does not exist."}
        record = read_json(path)
        if not isinstance(record, dict) or "status" not in record:
            raise DataError(f"{path}: has no status; it is no result of quantwatt.")
        return record


def read(folder: str | Path) -> Result:
    """Read a result's summary.

    Raises:
        DataError: the folder has no tables/summary.csv, or it is no summary, or lists a row twice.
    """
    path = Path(folder) / "tables/summary.csv"
    if not path.exists():
        raise DataError(f"{folder}: has no tables/summary.csv; name results/EXPERIMENT of a finished run.")
    table = tables.read_table(path)
    if missing := [name for name in NEEDED if name not in table.columns]:
        raise DataError(f"{path}: has no column {missing[0]}; it is no summary of quantwatt.")
    rows: dict[Key, Row] = {}
    for place, row in enumerate(table.reindex(columns=tables.SUMMARY_COLUMNS).to_dict("records"), start=1):
        for name in (key := tuple(row[column] for column in KEY)):
            if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):  # names become paths
                raise DataError(f"{path}: row {place}: {name!r} is no name.")
        if key in rows:
            raise DataError(f"{path}: lists {', '.join(key)} twice.")
        rows[key] = row | {"baseline": str(row["baseline"]).lower() == "true"}
    return Result(str(folder), rows)


def number(row: Row, column: str) -> float:
    """A figure of a row of the summary; NaN where it is empty, is none, or has no column."""
    try:
        return float(row.get(column, math.nan))
    except (TypeError, ValueError):
        return math.nan


def interval(row: Row, column: str) -> tuple[float, float, float]:
    """(value, low, high) of a figure, NaN where they are missing."""
    value, low, high = (number(row, f"{column}{end}") for end in ("", "_low", "_high"))
    return value, low, high
