"""Where an axis ends when a few points are so much worse than the others that these would shrink to a dot."""

from collections.abc import Collection

import numpy as np
import pandas as pd

from quantwatt.config.metric_entries import Metric

LEAST = 1 / 3  # of the axis: where all others would have less, the worst points are drawn at its edge
MOST = 3 / 8  # of the points: with more of them apart, there are two groups, and nothing is drawn at the edge


def worst_shown(low: np.ndarray, high: np.ndarray, kept: Collection[int] = ()) -> float:
    """The end of what is drawn in its place; worse points belong at the edge. Infinite where all have room.

    Of points that are left, again the worst go to the edge as long as they leave the others less than LEAST, and are as
    far from them as these are wide: where points lie one after another, none stands apart.

    Args:
        low, high: [n] ends of the points' intervals on the axis' scale; larger is worse.
        kept: indices of points that are never drawn at the edge.
    """
    order = np.argsort(-low, kind="stable")
    end, span = np.inf, high.max() - low.min()
    for count in range(1, int(MOST * len(order)) + 1):
        worst, others = order[:count], order[count:]
        if set(worst) & set(kept):
            break
        most, least = high[others].max(), low[others].min()
        apart = low[worst].min() - most
        if apart > 0 and most - least <= min(apart, LEAST * span):
            end, span = float(most), most - least
    return end


def far_worse(rows: pd.DataFrame, metric: Metric) -> tuple[set[str], float, float]:
    """(methods far worse in a metric than the others in all their rows, lowest and highest value of the others).

    Args:
        rows: of the summary, a row per method and seed or number of steps, with values of the metric or without.
    """
    sign = -1 if metric.higher_is_better else 1
    values = sign * rows[[metric.column, f"{metric.column}_low", f"{metric.column}_high"]].to_numpy(float)
    ends = pd.DataFrame({"low": np.fmin.reduce(values, axis=1), "high": np.fmax.reduce(values, axis=1)})
    ends = ends.groupby(rows["method"].to_numpy(), sort=False).agg({"low": "min", "high": "max"}).dropna()
    far = ends["low"] > worst_shown(ends["low"].to_numpy(), ends["high"].to_numpy())
    low, high = sorted(sign * float(end) for end in (ends.loc[~far, "low"].min(), ends.loc[~far, "high"].max()))
    return set(ends.index[far]), low, high
