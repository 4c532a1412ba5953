"""A card for each of the few methods that no other one dominates: what it looks like, and what it costs."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from quantwatt.report import tables
from quantwatt.report.page.numbers import missing

MOST_CARDS = 4
REACH = (0.5, 2.0)  # of bars of ratios, on a logarithmic scale


def cards(rows: pd.DataFrame, group: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The methods of one model and sampling that are worth a look, the recommended ones first.

    Args:
        rows: of the summary; group: as of `recommendation.recommend`, or None.
    Returns:
        list of {"row", "role": in a word or two, "quality": None or {"metric": Metric, "bar"}, "costs": [{"name",
        "column", "bar"}]}. A bar is {"value", "low", "high", "floor": None or (low, high)}, shares of its length from
        0 to 1; "low" and "high" are None without an interval.
    """
    if group is None:
        return []
    others = rows[~rows["baseline"].astype(bool)]
    metric = tables.first_metric(others)
    return [
        {"row": row, "role": role, "quality": metric and _quality(row, metric), "costs": list(_costs(row))}
        for name, role in _chosen(others, group, metric).items()
        for row in others[others["method"] == name].to_dict("records")
    ]


def _chosen(others, group, metric):
    """{method: role}: those recommended, then the best in quality and the smallest that are on a front."""
    chosen = {name: role for name, role in ((group["take"], "take"), (group["second"], "second")) if name}
    front = {method["method"] for method in group["methods"] if method["fronts"]}
    if group["nearest"]:
        chosen.setdefault(group["nearest"], "nearest to the limits")
    candidates = others[others["method"].isin(front)]
    if metric and candidates[metric.column].notna().any():
        values = candidates[metric.column]
        best = values.idxmax() if metric.higher_is_better else values.idxmin()
        chosen.setdefault(candidates.loc[best, "method"], "best quality")
    if candidates["size_mb"].notna().any():
        chosen.setdefault(candidates.loc[candidates["size_mb"].idxmin(), "method"], "smallest within the limit")
    return dict(list(chosen.items())[:MOST_CARDS])


def _quality(row, metric):
    if missing(row[metric.column]):
        return None
    if metric.scale is None:
        return {"metric": metric, "bar": None}
    worst, best = metric.scale
    value, low, high = (row[f"{metric.column}{end}"] for end in ("", "_low", "_high"))
    return {"metric": metric, "bar": _bar(lambda v: (v - worst) / (best - worst), value, low, high, None)}


def _costs(row):
    for name, cost in (("energy", "energy"), ("time", "latency")):
        value, low, high = (row[f"{cost}_ratio{end}"] for end in ("", "_low", "_high"))
        if not missing(value):
            floor = (row[f"{cost}_control_low"], row[f"{cost}_control_high"])
            bar = _bar(_place, value, low, high, None if missing(floor[0]) else floor)
            yield {"name": name, "column": f"{cost}_ratio", "bar": bar}


def _place(ratio):
    """Where a ratio lies on a bar: 0.5 for 1."""
    low, high = map(math.log, REACH)
    return (math.log(ratio) - low) / (high - low) if ratio > 0 else 0.0


def _bar(place, value, low, high, floor):
    def at(number):
        return None if missing(number) else round(min(max(place(number), 0.0), 1.0), 4)

    return {"value": at(value), "low": at(low), "high": at(high), "floor": floor and (at(floor[0]), at(floor[1]))}
