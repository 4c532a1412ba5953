"""Where time and energy go: the phases of a measured cell, for the page's table and its chart."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from quantwatt.report import tables
from quantwatt.report.cells import Cell
from quantwatt.report.page.numbers import rounded

COSTS = ("latency_s", "energy_j")


def phase_rows(cells: Iterable[Cell], samplings: Collection[str]) -> list[dict[str, Any]]:
    """One mapping per measured cell with phases.

    A ratio and a check is (value, low, high), by the key of its cost; a ratio may also be the text TOO_NOISY.

    Args:
        samplings: names of the samplings that are shown.
    Returns:
        list of {"title", "group": model and sampling, "method", "phases": [(name, phase)], "apart", "checks",
        "estimated"}.
    """
    return [
        {
            "title": f"{cell.model} · {cell.method}" + (f" · {cell.sampling}" if len(samplings) > 1 else ""),
            "group": f"{cell.model} · {cell.sampling}",
            "method": cell.method,
            "phases": [(name, phase | {"ratio": _ratios_of(phase)}) for name, phase in phases.items()],
            "apart": cell.measurement.get("phases_apart", []),
            "checks": {key: check for key, check in cell.measurement["phases_check"].items() if check},
            "estimated": cell.measurement["estimated"],
        }
        for cell in cells
        if cell.sampling in samplings and (phases := cell.measurement.get("phases"))
    ]


def _ratios_of(phase):
    """{key of a cost: (ratio, low, high) or TOO_NOISY} of a phase to the baseline's."""
    found = {key: tables.triple(ratio) for key, ratio in phase["ratio"].items() if ratio}
    return {key: tables.TOO_NOISY if tables.is_noisy(*ratio[1:]) else ratio for key, ratio in found.items()}


def phase_groups(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the page's chart draws of `phase_rows`, one mapping per model and sampling.

    Returns:
        list of {"title", "estimated", "methods": [{"name", "whole": {key of a cost: value or None}, "phases":
        [{"name", "apart": whether the whole lacks it, "latency_s", "energy_j", "mean_w", "ratio": {key:
        [value, low, high]}}]}]}; a ratio that is too noisy is left out.
    """
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        group = groups.setdefault(row["group"], {"title": row["group"], "estimated": row["estimated"], "methods": []})
        group["methods"].append(
            {
                "name": row["method"],
                "whole": {key: _whole(row, key) for key in COSTS},
                "phases": [
                    {key: rounded(phase.get(key)) for key in (*COSTS, "mean_w")}
                    | {"name": name, "apart": name in row["apart"]}
                    | {
                        "ratio": {
                            key: list(map(rounded, r)) for key, r in phase["ratio"].items() if not isinstance(r, str)
                        }
                    }
                    for name, phase in row["phases"]
                ],
            }
        )
    return list(groups.values())


def _known(ratios):
    return {key: list(map(rounded, ratio)) for key, ratio in ratios.items() if not isinstance(ratio, str)}


def _whole(row, key):
    """The whole as the same pairs show it, which the sum of its phases misses by the check's difference."""
    parts = [phase.get(key) for name, phase in row["phases"] if name not in row["apart"]]
    if key not in row["checks"] or any(part is None for part in parts):
        return None
    return rounded(sum(parts) / (1 + row["checks"][key]["difference"]))
