"""Read and gather sensitivity tables: per layer and candidate, the errors with only that layer in these formats.

Where a sensitivity has ranges of steps, the layer is in these formats in the steps of one range only, and `range` is
its number, from 0.
"""

import csv
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError

METRICS = ("ssim", "psnr", "sqnr", "noise")
COLUMNS = ("layer", "candidate", "range", *METRICS, "inputs", "megabytes")
COSTS = ("layer", "candidate", "megabytes", "milliseconds", "joules", "kernel", "reason")
TRIALS = ("program", "number", "image_error", "psnr")
WORDS = {"layer", "candidate", "kernel", "reason"}  # columns without numbers


def read(path: str | Path, columns: Sequence[str] = COLUMNS) -> list[dict[str, Any]]:
    """The rows of a table, its numbers as floats and empty cells as None.

    Raises:
        DataError: the file is missing, or has other columns.
    """
    try:
        with Path(path).open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file does not exist.") from error
    if tuple(reader.fieldnames or ()) != tuple(columns):
        raise DataError(f"{path}: its columns are not {', '.join(columns)}; delete it and run again.")
    return [{key: _value(key, text) for key, text in row.items()} for row in rows]


def _value(column, text):
    if text == "":
        return None
    if column == "range":
        return int(text)
    return text if column in WORDS else float(text)


def ranges_of(sensitivity: Mapping[str, Any]) -> list[int | None]:
    """The values of the column `range` for a completed sensitivity: None where a layer is tried in all steps."""
    return list(range(len(sensitivity["ranges"]))) if sensitivity["ranges"] else [None]


def gathered(
    tables: Iterable[str | Path],
    names: Iterable[str],
    candidates: Collection[str],
    ranges: Collection[int | None] = (None,),
) -> list[dict[str, Any]]:
    """Merge the rows of several jobs, in the model's order of layers.

    Raises:
        DataError: a row of a layer, candidate and range is missing, or two tables have it.
    """
    merged = {}
    for path in tables:
        for row in read(path):
            key = row["layer"], row["candidate"], row["range"]
            if key in merged:
                raise DataError(f"{path}: layer {key[0]} in {key[1]} stands in another job's table, too; delete both.")
            merged[key] = row
    wanted = [(name, candidate, span) for name in names for candidate in candidates for span in ranges]
    if lacking := [key for key in wanted if key not in merged]:
        raise DataError(f"no job has tried layer {lacking[0][0]} in {lacking[0][1]}; delete the jobs' tables.")
    return [merged[key] for key in wanted]


def by_layer(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """{layer: {candidate: row}}."""
    table = {}
    for row in rows:
        table.setdefault(row["layer"], {})[row["candidate"]] = row
    return table


def by_range(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, dict[str, Mapping[str, Any]]]]:
    """[{layer: {candidate: row}}] of each range of steps; of one, where layers were tried in all steps."""
    parts = {}
    for row in rows:
        parts.setdefault(row["range"] or 0, []).append(row)
    return [by_layer(parts[span]) for span in sorted(parts)]


class Unfinished:
    """Rows of an unfinished job, saved one by one, so that an interrupted job continues where it stopped.

    rows: the rows of an earlier run with the same key. The key must hold everything that the rows depend on.
    """

    def __init__(self, path: Path, key: Any):
        self.path, self.rows, head = path, [], json.dumps({"key": key})
        if path.exists():
            first, *lines = path.read_text().split("\n")
            if first == head:
                self.rows = [json.loads(line) for line in lines[:-1]]  # the last line is empty or incomplete
        with manifest.atomic_path(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in [head, *map(json.dumps, self.rows)]))

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
