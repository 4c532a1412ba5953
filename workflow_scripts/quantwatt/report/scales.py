"""The axes of scatter plots of quality over cost: limits, ticks, and where the points stand on them.

A baseline without a value of the metric stands on a dashed line above all values; a method so much worse than the
others that these would shrink to a dot stands behind a dotted line at the edge, with an arrow.
"""

from collections.abc import Collection

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes

from quantwatt.config.metric_entries import Metric
from quantwatt.report.clipping import worst_shown
from quantwatt.report.figures import GREY, PALE, plain_log_ticks

_DASHES, _DOTS = (0, (4, 3)), (0, (1, 2))
_LABEL = 0.15  # of the span of values: room above and below for labels


def quality(axes: Axes, rows: pd.DataFrame, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Set the y axis for a metric, better above; (y, whether at the edge) of the rows, [rows] each."""
    # Whatever the metric, more of `bad` is worse: it is -sign times y.
    sign, values = 1 if metric.higher_is_better else -1, rows[metric.column].to_numpy(float)
    scored = np.isfinite(values)
    bad, *ends = (-sign * values for values in _triple(rows, metric.column))
    low, high = np.fmin(*ends), np.fmax(*ends)
    kept = np.flatnonzero(rows["baseline"].to_numpy(bool)[scored])
    start, end, worst = _span(low[scored], high[scored], kept) if scored.any() else (-1.0, 0.0, np.inf)
    span = (end - start) or abs(end) * 0.1 or 1.0
    beyond = scored & (bad > worst)
    ceiling, gutter = start - 0.28 * span, np.full(len(bad), end)
    best, last = start - _LABEL * span, end + _LABEL * span
    first_tick, last_tick = best, last
    if not scored.all():
        best, first_tick = ceiling - 0.14 * span, ceiling + 0.1 * span
        axes.axhline(-sign * ceiling, color=PALE, linewidth=0.8, linestyle=_DASHES, zorder=1)
    if beyond.any():
        last, last_tick = end + 0.42 * span, end + 0.1 * span
        axes.axhline(-sign * last_tick, color=GREY, linewidth=0.8, linestyle=_DOTS, zorder=1)
        ranks = np.argsort(np.argsort(bad[beyond]))  # so that no mark hides another one of the same cost
        gutter[beyond] += span * (0.2 + 0.12 * ranks / max(len(ranks) - 1, 1))
    axes.set_ylim(-sign * last, -sign * best)
    ticks = ticker.MaxNLocator(6).tick_values(*sorted((-sign * start, -sign * end)))
    axes.yaxis.set_major_locator(ticker.FixedLocator([t for t in ticks if first_tick < -sign * t < last_tick]))
    return -sign * np.where(beyond, gutter, np.where(scored, bad, ceiling)), beyond


def cost(axes: Axes, rows: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Set the x axis for a positive cost, logarithmic; (x, whether at the edge) of the rows, [rows] each."""
    value, low, high = _triple(rows, column)
    value, low, high = np.log(value), np.log(np.maximum(low, value / 10)), np.log(high)  # an interval may reach 0
    start, end, worst = _span(low, high, np.flatnonzero(rows["baseline"]))
    beyond, room = value > worst, max(0.22 * (end - start), np.log(1.08))
    axes.set_xscale("log")
    axes.set_xlim(np.exp(start - room), np.exp(end + (2.1 if beyond.any() else 1) * room))
    plain_log_ticks(axes, np.exp(end + 0.7 * room) if beyond.any() else np.inf)
    if beyond.any():
        axes.axvline(np.exp(end + 0.7 * room), color=GREY, linewidth=0.8, linestyle=_DOTS, zorder=1)
    return np.exp(np.where(beyond, end + 1.3 * room, value)), beyond


def arrow(axes: Axes, point: tuple[float, float], beyond: Collection[bool], colour: str) -> None:
    """Point from a point at the edge to where it belongs; `beyond`: whether its (cost, quality) is at the edge."""
    ways = np.asarray(beyond) * [17, -17]  # points
    if ways.any():
        style = {"arrowstyle": "<-", "color": colour, "shrinkA": 0, "shrinkB": 4}
        axes.annotate("", point, tuple(ways), textcoords="offset points", arrowprops=style)


def _triple(rows, column):
    """Value, low and high [rows] of a column; the value where there is no interval."""
    value = rows[column].to_numpy(float)
    ends = [rows[name].to_numpy(float) if name in rows else value for name in (f"{column}_low", f"{column}_high")]
    return value, *(np.where(np.isnan(end), value, end) for end in ends)


def _span(low, high, kept):
    """(start, end of what is drawn in its place, what is worse than a point there), on a scale where less is better."""
    worst = worst_shown(low, high, kept)
    inside = low <= worst
    return low[inside].min(), high[inside].max(), worst
