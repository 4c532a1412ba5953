"""Which metric sees which damage, at how many images: the widest format that it tells apart from the unquantized model.

A metric that is not paired tells a method apart where the 95 % interval of its change from the unquantized model, over
the same prompts and seeds, leaves out 0. A paired metric is perfect for the unquantized model by its definition, so
that every method differs from it: it tells a method apart where the interval of its difference from the widest format
leaves out 0.
"""

import math
from collections.abc import Iterator

import pandas as pd

from quantwatt.report import tables

COLUMNS = ["model", "metric", "images", "seen_bits", "seen", "not_seen"]


def told_apart(summary: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """One row for every model, metric and number of images, with COLUMNS.

    Args:
        summary, pairs: tables/summary.csv and tables/pairs.csv of an experiment, as of `tables.read_table`.
    Returns:
        seen_bits: bits of weights, scales included, of the widest format that is told apart, NaN where none is; seen
            and not_seen: the methods, the widest first, with commas.
    """
    quantized = summary[(summary["status"] == "ok") & (summary["method"] != summary["baseline"])]
    widest_first = quantized.sort_values("weight_bits", ascending=False, kind="stable")
    rows = [row for _, cells in widest_first.groupby(["model", "sampling"], sort=False) for row in _rows(cells, pairs)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    places = {metric.title: place for place, metric in enumerate(tables.METRICS.values())}
    return table.sort_values(["model", "metric", "images"], key=lambda c: c.map(places) if c.name == "metric" else c,
                             kind="stable", ignore_index=True)  # fmt: skip


def _rows(cells, pairs) -> Iterator[dict]:
    """The rows of one model and sampling, whose cells are sorted by width."""
    first = cells.iloc[0]
    for metric in tables.METRICS.values():
        if metric.column not in cells or cells[metric.column].isna().all():
            continue
        if metric.paired:
            compared = cells.iloc[1:]
            bounds = [_difference(pairs, first, method, metric.column) for method in compared["method"]]
        else:
            compared = cells
            ends = [f"{metric.column}_change_{end}" for end in ("low", "high")]
            bounds = list(cells.reindex(columns=ends).itertuples(index=False, name=None))
        apart = [low > 0 or high < 0 for low, high in bounds]
        known = [not (math.isnan(low) or math.isnan(high)) for low, high in bounds]
        yield {
            "model": first["model"],
            "metric": metric.title,
            "images": int(first["n_images"]),
            "seen_bits": max(compared.loc[apart, "weight_bits"], default=math.nan),
            "seen": ", ".join(compared.loc[apart, "method"]),
            "not_seen": ", ".join(m for m, a, k in zip(compared["method"], apart, known, strict=True) if k and not a),
        }


def _difference(pairs, widest, method, column):
    """(low, high) of the difference of a method from the widest one, in either order; NaN where there is none."""
    ends = [f"{column}_difference_{end}" for end in ("low", "high")]
    if not set(ends) <= set(pairs):
        return math.nan, math.nan
    of_cells = pairs[(pairs["model"] == widest["model"]) & (pairs["sampling"] == widest["sampling"])]
    for one, other in ((method, widest["method"]), (widest["method"], method)):
        if len(row := of_cells[(of_cells["method"] == one) & (of_cells["other"] == other)]):
            return tuple(row.iloc[0][ends])
    return math.nan, math.nan
