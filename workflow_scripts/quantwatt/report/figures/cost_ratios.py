"""Energy and time of each method as a ratio to the baseline's, with intervals, over what the machine alone may do.

The grey band is the A/A control, the interval of the baseline's ratio to itself; the paler one is as wide on both sides
of 1, for a ratio within it is "within the control" (quantwatt.report.tables). What lies in the grey is nothing.
"""

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from quantwatt.report import labels, lanes
from quantwatt.report.clipping import worst_shown
from quantwatt.report.figures import GREY, INK, Inputs, plain_log_ticks, sentence
from quantwatt.report.tables import (
    BASELINE,
    BETTER,
    COSTS,
    TOO_NOISY,
    WORSE,
    first_samplings,
    floor_of,
    groups,
    is_real,
)

GOOD, BAD = "#0072b2", "#b34700"  # told apart by colour-blind readers, and dark enough for text
FLOOR, CONTROL = "#eceef0", "#cfd4da"
WORDS = {"energy": "energy", "latency": "time"}
NOTE = (
    "Ratios to the unquantized model, measured in turns, with 95 % intervals; left of 1 is less. What lies in the grey "
    "may be the machine's: the control, paler as far on the other side. Dotted: the margin of what is called equal."
)


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """A chart per model, sampling and device; a panel per cost with a ratio, methods by the first one's ratio."""
    charts, inks = [], set()
    for title, rows in groups(first_samplings(inputs.summary)):
        costs = [name for name, _ in COSTS.values() if rows[f"{name}_ratio"].notna().any()]
        if costs:
            rows = _ordered(rows, [f"{name}_ratio" for name in costs])
            panels = [_panel(rows, name) for name in costs]
            inks |= {ink_of(row[_verdict(name)]) for name in costs for _, row in rows.iterrows()}
            names = [f"{row['method']}, itself" if row["baseline"] else row["method"] for _, row in rows.iterrows()]
            charts.append(lanes.Chart(title, names, [INK] * len(rows), panels))
    if not charts:
        return sentence("No method was measured in turns with the unquantized model.", narrow)
    texts = {GOOD: "costs less", BAD: "costs more", GREY: "equal, or not told apart"}
    key: list[tuple[Artist, str]] = [
        (Line2D([], [], marker="o", markersize=5, color=ink, linewidth=1.6, markerfacecolor=_face(ink)), text)
        for ink, text in texts.items()
        if ink in inks
    ]
    if inputs.summary[[f"{name}_control" for name, _ in COSTS.values()]].notna().any(axis=None):
        key.append((Patch(color=CONTROL), "control: unquantized against itself"))
    return lanes.draw(charts, narrow, NOTE, key)


def _ordered(rows, ratios):
    """The measured rows with a ratio by its rising value, those that were too noisy behind, the baseline last."""
    told = rows[[*ratios, *(verdict for _, verdict in COSTS.values())]].notna().any(axis=1)  # no interval, no verdict
    rows = rows[is_real(rows) & told]
    return rows.sort_values(["baseline", *ratios], kind="stable", na_position="last")


def _verdict(name):
    return next(verdict for cost, verdict in COSTS.values() if cost == name)


def ink_of(verdict: str | None) -> str:
    """GOOD or BAD only where the verdict has no "but"; else GREY, of the baseline INK."""
    return {BETTER: GOOD, WORSE: BAD, BASELINE: INK}.get(str(verdict), GREY)


def _face(ink):
    return "white" if ink == GREY else ink


def _interval(row, name):
    """(value, low, high) of a row's ratio, or of the baseline's to itself; NaN where there is none."""
    column = f"{name}_control" if row["baseline"] else f"{name}_ratio"
    return float(row[column]), float(row[f"{column}_low"]), float(row[f"{column}_high"])


def _panel(rows, name):
    values = np.array([_interval(row, name) for _, row in rows.iterrows()])  # [methods, 3]
    inks = [ink_of(row[_verdict(name)]) for _, row in rows.iterrows()]
    base = rows[rows["baseline"].astype(bool)]
    control = _interval(base.iloc[0], name) if len(base) else (np.nan, np.nan, np.nan)
    margin = rows["margin"].iloc[0]

    def draw(axes):
        _scale(axes, values, control, margin)
        if not np.isnan(control[1]):
            floor = 1 + floor_of(control)
            axes.axvspan(1 / floor, floor, color=FLOOR, linewidth=0, zorder=0.5)
            axes.axvspan(*control[1:], color=CONTROL, linewidth=0, zorder=0.6, gid="control")
        axes.axvline(1, color=INK, linewidth=0.9, zorder=1)
        for edge in (1 - margin, 1 + margin):
            axes.axvline(edge, color=GREY, linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)
        right = axes.get_xlim()[1]
        for line, ((value, low, high), ink) in enumerate(zip(values, inks, strict=True)):
            if np.isnan(value):
                continue
            if value > right:
                axes.plot(right, line, marker=">", markersize=7, color=ink, clip_on=False, zorder=4)
                continue
            axes.plot([low, high], [line, line], color=ink, linewidth=2, solid_capstyle="butt", zorder=3)
            axes.plot(value, line, marker="o", markersize=5, color=ink, markerfacecolor=_face(ink), zorder=4)

    estimated = name == "energy" and rows["energy_estimated"].eq(True).all()
    texts = [_text(row, name, value, estimated) for (_, row), value in zip(rows.iterrows(), values, strict=True)]
    short = [text.partition("]")[0] + "]" if "]" in text else text.partition(":")[0] for text in texts]
    return lanes.Panel(draw, f"{WORDS[name]} ratio (log){', estimated' if estimated else ''}", texts, short)


def _text(row, name, value, all_estimated):
    verdict = row[_verdict(name)]
    if np.isnan(value[0]):
        return "too noisy" if verdict == TOO_NOISY else "no ratio"
    ratio, low, high = map(labels.digits, value)
    figure = ratio if np.isnan(value[1]) else f"{ratio} [{low}, {high}]"
    said = "" if row["baseline"] or pd.isna(verdict) else f" {verdict}"
    one = name == "energy" and row["energy_estimated"] is True and not all_estimated
    return figure + said + (", estimated" if one else "")


def _scale(axes, values, control, margin):
    """Logarithmic limits around all intervals, the control, the margin and 1."""
    known = values[~np.isnan(values[:, 0])]
    logs = np.log(np.where(np.isnan(known), known[:, :1], known)[:, 1:])
    fixed = np.log([[1 - margin, 1 + margin], [np.nanmin([*control, 1]), np.nanmax([*control, 1])]])
    low, high = np.vstack([logs, fixed]).T
    end = worst_shown(low, high, [len(low) - 2, len(low) - 1])
    shown = np.concatenate([low[low <= end], high[low <= end]])
    room = 0.05 * (shown.max() - shown.min())
    axes.set_xscale("log")
    axes.set_xlim(*np.exp([shown.min() - room, shown.max() + room]))
    plain_log_ticks(axes)
