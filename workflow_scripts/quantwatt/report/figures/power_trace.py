"""The baseline's sampled power while it was measured against itself: the blocks of both sides, and the phases."""

import pandas as pd
from matplotlib.figure import Figure

from quantwatt.report import traces
from quantwatt.report.figures import GREY, INK, NARROW, PALETTE, WIDE, Inputs, sentence
from quantwatt.report.tables import first_samplings

SHADED = 24  # blocks that are drawn at most: of short blocks, a minute would be a barcode
SHADES = {"method": "#e3edf6", "baseline": "#f4f6f8"}
PHASE = "#f6eee3"
LEAST_WIDTH = 0.02  # share of the axis from which on a phase's name has room
BINS = 1000  # from three times as many samples on, their mean and range are drawn


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """A panel per model and sampling with the baseline's power over time and its idle power."""
    found, summary = [], first_samplings(inputs.summary)
    for _, row in summary[summary["baseline"].astype(bool)].iterrows():
        trace = traces.read(inputs.results, row)
        if trace is not None:
            found.append((row, trace))
    if not found:
        return sentence("No power was sampled: " + _why_no_energy(inputs.summary), narrow)
    figure = Figure(figsize=(NARROW if narrow else WIDE, 2.7 * len(found)), dpi=100)
    figure.subplots_adjust(left=0.13 if narrow else 0.07, right=0.98, top=1 - 0.4 / (2.7 * len(found)),
                           bottom=0.55 / (2.7 * len(found)), hspace=0.6)  # fmt: skip
    for axes, (row, trace) in zip(figure.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True):
        spans = trace.spans[:SHADED]
        end = spans[-1][2]
        for name, start, stop in spans:
            axes.axvspan(start, stop, color=SHADES.get(name, PHASE), linewidth=0, zorder=0)
            if name not in SHADES and stop - start > LEAST_WIDTH * end:
                axes.text((start + stop) / 2, 0.02, name, transform=axes.get_xaxis_transform(), ha="center",
                          va="bottom", rotation=90, fontsize=7, color=GREY, zorder=4,
                          bbox={"facecolor": PHASE, "edgecolor": "none", "pad": 0.5})  # fmt: skip
        shown = trace.seconds <= end
        _draw_trace(axes, traces.Trace(trace.seconds[shown], trace.watts[shown], spans))
        if pd.notna(row["idle_w"]):
            axes.axhline(row["idle_w"], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        estimated = ", estimated" if row["meter"] == "estimate" else ""
        idle = f"; dashed: idle {row['idle_w']:.3g} W" if pd.notna(row["idle_w"]) else ""
        axes.set_title(f"{row['model']} {row['method']}: power (W{estimated}){idle}", fontsize=8 if narrow else 9.5)
        axes.set_xlabel("seconds; shaded: the blocks of a pair, and phases", fontsize=8 if narrow else 9)
        axes.set_ylim(0, None)
        axes.set_xlim(0, end)
    return figure


def _draw_trace(axes, trace):
    """Draw the samples as a line; many samples as the mean and range of intervals."""
    if len(trace.watts) < 3 * BINS:
        axes.plot(trace.seconds, trace.watts, color=PALETTE[0], linewidth=0.7)
        return
    seconds, low, mean, high = traces.in_bins(trace, BINS)
    axes.fill_between(seconds, low, high, color=PALETTE[0], alpha=0.25, linewidth=0)
    axes.plot(seconds, mean, color=PALETTE[0], linewidth=0.7)


def _why_no_energy(summary):
    reasons = summary.loc[summary["baseline"].astype(bool), "energy_reason"].dropna()
    return str(reasons.iloc[0]).rstrip(".") + "." if len(reasons) else "the meter keeps no samples."
