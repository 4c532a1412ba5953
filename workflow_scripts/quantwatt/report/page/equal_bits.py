"""Formats at equal bits: a table of formats by solvers for each size, and what one change of a method does."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from quantwatt.report import tables
from quantwatt.report.equal_bits import ALPHA, BEST, PARTS
from quantwatt.report.page.numbers import compact, listed, with_bounds
from quantwatt.report.tables import EQUAL, UNDECIDED

LEVEL = f"{100 * ALPHA:g} %"
MOST_NAMED = 8  # methods of a sentence
WHOLE = 16  # bits of inputs that are not quantized, or more


def equal_bits(formats: pd.DataFrame, samplings: Sequence[str]) -> list[dict[str, Any]]:
    """One mapping per model, sampling, bits of weights and of inputs.

    Args:
        formats: the table `report.equal_bits.formats_table`.
        samplings: names of those that are shown.
    Returns:
        list of {"title", "sentence", "metric": Metric, "columns": [(solver, transforms)], "rows": [(format, stored
        bits, [cell or None for each column])]}, rows in the order of their best. A cell is {"value", "low", "high",
        "method", "is_best": of all, "verdict": on the difference from the best of the column}.
    """
    parts = []
    shown = formats[formats["sampling"].isin(samplings)]
    keys = ["model", "sampling", "bits", "activation_bits"]
    for (model, sampling, bits, inputs), group in shown.groupby(keys, sort=False):
        metric = next(metric for metric in tables.METRICS.values() if metric.title == group["metric"].iloc[0])
        group = group.assign(transforms=group["transforms"].fillna(""))
        columns = list(dict.fromkeys(group[["transforms", "solver"]].itertuples(index=False, name=None)))
        columns = sorted(columns[::-1], key=lambda column: column[0])  # the one with the worst methods first
        rows = [
            (name, compact(of_format["weight_bits"].iloc[0]), [_cell(of_format, *column) for column in columns])
            for name, of_format in group.groupby("format", sort=False)
        ]
        title = (
            f"{compact(bits)} bits a weight, {'weights alone' if inputs >= WHOLE else f'inputs of {compact(inputs)}'}"
        )
        parts.append({
            "title": title if shown[["model", "sampling"]].drop_duplicates().shape[0] == 1
                     else f"{model} · {sampling}: {title}",
            "sentence": _sentence(group, metric), "metric": metric,
            "columns": [(solver, transforms) for transforms, solver in columns], "rows": rows,
        })  # fmt: skip
    return parts


def _cell(of_format, transforms, solver):
    chosen = of_format[(of_format["transforms"] == transforms) & (of_format["solver"] == solver)]
    if chosen.empty:
        return None
    row = chosen.iloc[0]
    return {"value": row["value"], "low": row["value_low"], "high": row["value_high"], "method": row["method"],
            "is_best": row["verdict"] == BEST, "verdict": row["solver_verdict"]}  # fmt: skip


def _sentence(group, metric):
    """Which method is best, and which are not told apart from it."""
    best, others = group.iloc[0], group.iloc[1:]
    figure = with_bounds(best["value"], best["value_low"], best["value_high"], unit=metric.unit)
    head = f"{best['method']} is best in {metric.name}: {figure}."
    alike = list(others.loc[others["verdict"].isin([UNDECIDED, EQUAL]), "method"])
    untold = list(others.loc[others["verdict"].isna(), "method"])
    if not alike:
        tail = "Every other method is worse." if len(others) > 1 else "The other method is worse."
    elif len(alike) > MOST_NAMED:
        tail = f"{len(alike)} of {len(others)} others are not told apart from it."
    else:
        tail = f"Not told apart from it: {listed(alike)}; the other {len(others) - len(alike)} are worse."
    if len(alike) == len(others):
        tail = "No other method is told apart from it."
    return f"{head} {tail}" + (f" Without an interval: {listed(untold)}." if untold else "")


def changes(table: pd.DataFrame, samplings: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """{part: rows of `report.equal_bits.changes_table`}, of the parts that change; an empty name is "none"."""
    shown = table[table["sampling"].isin(samplings)].fillna({"before": "none", "after": "none"})
    return {part: rows for part in PARTS if (rows := shown[shown["part"] == part].to_dict("records"))}
