"""Compare mixed methods (a format per layer, within a budget) with uniform methods (one format for all layers)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from quantwatt.config.metric_entries import Metric
from quantwatt.report.tables import BETTER, compare, first_metric, first_samplings, groups

# Tolerance for equal average bits. The allocation weights activation bits by the elements of each layer's input, the
# summary by each layer's number of weights.
SAME_BITS = {"weight_bits": 0.05, "activation_bits": 0.5}


def with_mixed(summary: pd.DataFrame) -> list[tuple[str, Metric, pd.DataFrame]]:
    """[(title, metric, rows)] of the groups in which a mixed method has a value of the first metric."""
    mixed_groups = []
    for title, rows in groups(first_samplings(summary)):
        metric = first_metric(rows)
        if metric and rows.loc[rows["allocation"] == "mixed", metric.column].notna().any():
            mixed_groups.append((title, metric, rows))
    return mixed_groups


def counterpart(row: pd.Series, rows: pd.DataFrame, metric: Metric) -> pd.Series | None:
    """The best uniform method with the same average bits as a mixed row, else the next larger number, else None."""
    uniform = rows[(rows["allocation"] == "uniform") & rows[metric.column].notna()]
    for bits, slack in SAME_BITS.items():
        uniform = uniform[uniform[bits] >= row[bits] - slack]
    for bits, slack in SAME_BITS.items():
        uniform = uniform[uniform[bits] <= uniform[bits].min() + slack]
    if uniform.empty:
        return None
    values = uniform[metric.column]
    return uniform.loc[values.idxmax() if metric.higher_is_better else values.idxmin()]


def against_uniform(rows: pd.DataFrame, metric: Metric) -> list[tuple[pd.Series, pd.Series | None, bool]]:
    """[(mixed row, its uniform counterpart or None, whether it is better: disjoint intervals)], in the rows' order."""
    mixed = rows[(rows["allocation"] == "mixed") & rows[metric.column].notna()]
    pairs = [(row, counterpart(row, rows, metric)) for _, row in mixed.iterrows()]
    return [(row, other, other is not None and compare(row, other, metric) == BETTER) for row, other in pairs]


def at_equal_joules(rows: pd.DataFrame, metric: Metric) -> list[tuple[pd.Series, pd.Series | None, str | None]]:
    """Compare mixed methods with the best uniform method that takes as many joules or fewer.

    Joules are compared as ratios to the baseline, which cancel what drifts; fewer or as many are those whose interval
    does not lie above the mixed method's. The methods' own intervals of the metric decide.

    Returns:
        [(mixed row, uniform row or None, verdict of `compare` or None)] of the mixed rows whose energy was measured.
    """
    measured = rows[rows["energy_ratio_high"].notna() & rows[metric.column].notna()]
    mixed, uniform = (measured[measured["allocation"] == name] for name in ("mixed", "uniform"))
    compared = []
    for _, row in mixed.iterrows():
        affordable = uniform[uniform["energy_ratio_low"] <= row["energy_ratio_high"]][metric.column]
        if affordable.empty:
            compared.append((row, None, None))
            continue
        other = rows.loc[affordable.idxmax() if metric.higher_is_better else affordable.idxmin()]
        compared.append((row, other, compare(row, other, metric)))
    return compared


def pareto(points: np.ndarray | Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points on the Pareto front, by rising cost.

    Args:
        points: [n, 2] of (cost, quality); a smaller cost and a larger quality are better.
    """
    points = np.asarray(points, dtype=float)
    order = np.lexsort((-points[:, 1], points[:, 0]))
    front, best = [], -np.inf
    for i in order:
        if points[i, 1] > best:
            front.append(int(i))
            best = points[i, 1]
    return front


def hull(points: np.ndarray | Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points on the rising part of the upper convex hull; argument and order as for `pareto`."""
    points, corners = np.asarray(points, dtype=float), []
    for i in pareto(points):
        while len(corners) > 1 and _is_below(points[corners[-1]], points[corners[-2]], points[i]):
            corners.pop()
        corners.append(i)
    return corners


def _is_below(point, start, end):
    """Whether a point lies on or below the line from `start` to `end`."""
    (along, up), (x, y) = end - start, point - start
    return y * along <= up * x
