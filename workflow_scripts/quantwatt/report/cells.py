"""Read the files that the stages wrote for each cell, from fixed paths.

The caller lists the cells, so a stale folder under results/ can never enter a table.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quantwatt.artifacts import layout
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.config import methods


@dataclass(frozen=True)
class Cell:
    """All files that the stages wrote for one (model, method, sampling), as parsed JSON."""

    model: str
    method: str
    sampling: str
    checkpoint: dict
    images: dict
    measurement: dict
    scores: dict = field(default_factory=dict)  # {METRIC: dict}; the lists "values" and "weights" are arrays

    @property
    def failure(self) -> tuple[str, str | None]:
        """(status, reason) of the first stage whose status is not "ok"; ("ok", None) if every status is "ok"."""
        for record in (self.checkpoint, self.images, self.measurement):
            if record["status"] != "ok":
                return record["status"], record.get("reason")
        return "ok", None


def read_grid(path: str | Path) -> dict[str, Any]:
    """The grid of an experiment: {"cells": [{"model", "method", "sampling"}], "metrics", "baseline", ...}.

    Args:
        path: a JSON file, or "-" for standard input (Linux limits one argument to 131,072 bytes, about 1,800 cells).
    Raises:
        DataError: the file is missing, is not JSON, or lists no cells.
    """
    try:
        grid = json.load(sys.stdin) if str(path) == "-" else read_json(path)
    except json.JSONDecodeError as error:
        raise DataError(f"standard input: not JSON ({error}).") from error
    if not isinstance(grid, dict) or not isinstance(grid.get("cells"), list):
        raise DataError(f'{path}: lists no cells; it should be {{"cells": [{{"model", "method", "sampling"}}]}}.')
    return grid


def cell_paths(results: str | Path, cell: Mapping[str, Any], metrics: Iterable[str]) -> dict[str, Path]:
    """`{part: path}` of the files of a cell `{"model", "method", "sampling"}`; scores are keyed `scores/METRIC`."""
    outputs = "predictions" if cell.get("kind") == "text" else "images"
    files = {"checkpoint": "checkpoint", "images": outputs, "measurement": "measurement"}
    return {part: layout.path(results, file, cell) for part, file in files.items()} | {
        f"scores/{metric}": layout.path(results, "score", {**cell, "metric": metric}) for metric in metrics
    }


def read_cells(
    results: str | Path,
    cells: Iterable[Mapping[str, Any]],
    metrics: Sequence[str],
    entries: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Read the files of every cell.

    Args:
        results: the experiment's folder, results/EXPERIMENT.
        cells: list of `{"model", "method", "sampling"}`.
        metrics: list of names such as "fid" or "psnr".
        entries: the experiment's {"methods", "samplings"} to check the files against; None: no check.
    Returns:
        list of Cell, in the order given.
    Raises:
        DataError: a file is missing or malformed, or was made for another cell or with other settings, or two methods
            used different prompts.
    """
    cells_read = []
    for cell in cells:
        parts = {name: read_json(path) for name, path in cell_paths(results, cell, metrics).items()}
        for name, path in cell_paths(results, cell, metrics).items():
            _check(path, parts[name], cell)
            if entries:
                _check_settings(path, parts[name], _settings_of(name, cell, entries))
        parts["images"].pop("images", None)  # the manifest entries of 50,000 images take 40 MB
        scores = {metric: with_arrays(parts.pop(f"scores/{metric}")) for metric in metrics}
        cells_read.append(Cell(cell["model"], cell["method"], cell["sampling"], **parts, scores=scores))
    _check_same_prompts(cells_read)
    return cells_read


def with_arrays(score: dict[str, Any]) -> dict[str, Any]:
    """A score whose values of single images are arrays: a list takes four times the memory."""
    lists = {key: np.asarray(score[key], np.float64) for key in ("values", "weights") if score.get(key) is not None}
    return {**score, **lists}


def _check(path, record, cell):
    if not isinstance(record, dict) or "status" not in record:
        raise DataError(f"{path}: has no status; delete it and run again.")
    for key in ("model", "method", "sampling"):
        if record.get(key, cell[key]) != cell[key]:
            raise DataError(f"{path}: belongs to {key} {record[key]!r}, not {cell[key]!r}; delete it and run again.")


def _settings_of(part, cell, entries):
    """{key: value} of the experiment's settings that a file of a cell (a key of `cell_paths`) should record."""
    method = entries["methods"][cell["method"]]
    if part == "checkpoint":
        return {"settings": method}
    drawn = {key: method[key] for key in methods.DRAWING if key in method}
    sampling = entries["samplings"][cell["sampling"]]
    texts = sampling.get("texts")
    of_model = {"texts": texts[cell["model"]]} if isinstance(texts, dict) else {}
    return {"images": {**sampling, **of_model, **drawn}, "measurement": drawn}.get(part, {})


def _check_settings(path, record, asked):
    """Refuse a file that was made with other settings.

    Snakemake makes such a file again, except after --touch or with --rerun-triggers mtime.
    """
    for key, value in asked.items():
        if key in record and key != "images" and record[key] != value:
            made, wanted = _difference(record[key], value)
            raise DataError(
                f"{path}: was made with {key} {made}, but the experiment has {wanted}; delete it and run again, "
                "without --touch and without --rerun-triggers mtime."
            )


def _difference(made, wanted):
    """The two values as text; for mappings, only the first key whose values differ."""
    if isinstance(made, dict) and isinstance(wanted, dict):
        key = next(key for key in (*wanted, *made) if made.get(key) != wanted.get(key))
        made_value, wanted_value = _difference(made.get(key), wanted.get(key))
        return f"{key}: {made_value}", f"{key}: {wanted_value}"
    return json.dumps(made), json.dumps(wanted)


def _check_same_prompts(cells):
    """Refuse methods of one model and sampling with different prompts or seeds: they are compared in pairs."""
    first = {}
    for cell in cells:
        if cell.images["status"] != "ok":
            continue
        asked = cell.images.get("prompts_sha256") or cell.images.get("texts_sha256")
        drawn = (asked, cell.images["seed"])
        other = first.setdefault((cell.model, cell.sampling), (cell.method, drawn))
        if other[1] != drawn:
            raise DataError(
                f"{cell.model}, {cell.sampling}: {cell.method} was given other prompts or another seed than "
                f"{other[0]}, so they cannot be compared; delete the image set of one of them and run again."
            )
