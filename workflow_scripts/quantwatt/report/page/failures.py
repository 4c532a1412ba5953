"""The results that are missing, grouped by reason."""

from collections.abc import Iterable
from typing import Any

from quantwatt.report.cells import Cell
from quantwatt.report.tables import metric_of


def failures(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Group the cells that lack the same result for the same reason.

    Returns:
        list of {"model", "methods", "samplings", "what", "status", "reason"}; samplings is empty if all
        samplings lack it.
    """
    samplings, merged = {}, {}
    for cell in cells:
        samplings.setdefault(cell.model, {})[cell.sampling] = None
        for missing in _of_cell(cell):
            merged.setdefault((cell.model, cell.method, *missing), []).append(cell.sampling)
    together = {}
    for (model, method, *missing), where in merged.items():
        where = () if len(where) == len(samplings[model]) else tuple(where)
        together.setdefault((model, where, *missing), []).append(method)
    keys = ("model", "samplings", "what", "status", "reason")
    return [dict(zip(keys, key, strict=True)) | {"methods": methods} for key, methods in together.items()]


def _of_cell(cell):
    """[(missing result, status, reason)] of a cell; costs of simulated or unmeasured cells are no failures."""
    for part, record in (("the method", cell.checkpoint), ("outputs", cell.images)):
        if record["status"] != "ok":
            return [(part, record["status"], record.get("reason"))]
    missing, measured = [], cell.measurement
    if measured["status"] not in ("ok", "simulated", "unmeasured"):
        missing.append(("cost", measured["status"], measured.get("reason")))
    elif measured["status"] == "ok" and measured.get("energy_j") is None:
        missing.append(("energy", "not read", measured.get("energy_reason")))
    return missing + [
        (metric_of(metric).title, score["status"], score.get("reason"))
        for metric, score in cell.scores.items()
        if score.get("value") is None and score["status"] != "reference"
    ]
