"""Power over time of every measured cell, for the page's chart."""

from typing import Any

import pandas as pd

from quantwatt.report import traces
from quantwatt.report.page.numbers import missing, rounded

BINS = 400  # points of a curve: a minute of ten samples a second becomes one point in 0.15 s
DIGITS = 4  # of watts; a page may hold a hundred curves


def power_curves(results: Any, summary: pd.DataFrame) -> list[dict[str, Any]]:
    """One mapping per row of the summary whose power was sampled, the baselines first.

    Returns:
        list of {"title", "estimated", "idle_w", "seconds", "watts": the mean in each point, "low", "high":
        the range of the samples in it (absent where the mean is all that is known), "spans": [[name, start, end]]}.
    """
    curves, several = [], summary["sampling"].nunique() > 1
    baselines = dict(summary.loc[summary["baseline"].astype(bool), ["model", "method"]].itertuples(index=False))
    for row in summary.sort_values("baseline", ascending=False, kind="stable").to_dict("records"):
        trace = traces.read(results, row) if row["status"] == "ok" else None
        if trace is None:
            continue
        estimated = row["meter"] == "estimate"
        seconds, low, mean, high = traces.in_bins(trace, BINS)
        names = {"method": row["method"], "baseline": baselines.get(row["model"], "baseline")}
        ranges = {} if estimated or len(trace.watts) <= BINS else {"low": low, "high": high}
        curves.append(
            {
                "title": f"{row['model']} · {row['method']}" + (f" · {row['sampling']}" if several else ""),
                "estimated": estimated,
                "idle_w": None if missing(row["idle_w"]) else rounded(row["idle_w"], DIGITS),
                "seconds": [round(float(at), 2) for at in seconds],
                "watts": [rounded(watts, DIGITS) for watts in mean],
                "spans": [
                    [str(names.get(name, name)), round(start, 2), round(end, 2)] for name, start, end in trace.spans
                ],
            }
            | {key: [rounded(watts, DIGITS) for watts in values] for key, values in ranges.items()}
        )
    return curves
