"""The baseline's sampled power over time: idle, energy blocks, and each phase run alone in a loop."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantwatt.artifacts import layout
from quantwatt.artifacts.errors import DataError
from quantwatt.report.figures import GREY, INK, NARROW, PALETTE, WIDE, Inputs, sentence
from quantwatt.report.tables import first_samplings


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """A panel per model and sampling with the baseline's power over time and its idle power."""
    traces, summary = [], first_samplings(inputs.summary)
    for _, row in summary[summary["baseline"].astype(bool)].iterrows():
        trace = _trace(inputs.results, row)
        if trace is not None:
            traces.append((row, *trace))
    if not traces:
        return sentence("No power was sampled: " + _why_no_energy(inputs.summary), narrow)
    figure = Figure(figsize=(NARROW if narrow else WIDE, 2.7 * len(traces)), dpi=100)
    figure.subplots_adjust(left=0.13 if narrow else 0.07, right=0.98, top=1 - 0.4 / (2.7 * len(traces)),
                           bottom=0.55 / (2.7 * len(traces)), hspace=0.6)  # fmt: skip
    for axes, (row, seconds, watts, spans) in zip(
        figure.subplots(len(traces), 1, squeeze=False)[:, 0], traces, strict=True
    ):
        for name, start, end in spans:
            phase = not name.isdigit()
            axes.axvspan(start, end, color="#f6eee3" if phase else "#eef3f8", linewidth=0, zorder=0)
            if phase:
                axes.text((start + end) / 2, 0.02, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
                          rotation=90, fontsize=6.5, color=GREY)  # fmt: skip
        _draw_trace(axes, seconds, watts)
        if pd.notna(row["idle_w"]):
            axes.axhline(row["idle_w"], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        estimated = ", estimated" if row["meter"] == "estimate" else ""
        idle = f"; dashed: idle {row['idle_w']:.3g} W" if pd.notna(row["idle_w"]) else ""
        axes.set_title(f"{row['model']} {row['method']}: power (W{estimated}){idle}", fontsize=8 if narrow else 9.5)
        axes.set_xlabel("seconds of one process" + ("; energy blocks and phases shaded" if spans else ""))
        axes.set_ylim(0, None)
        axes.set_xlim(seconds.min(), seconds.max())
    return figure


def _trace(results, row):
    """(seconds, watts, [(energy block or phase, start, end)]) of the first process in power.csv; None if no samples."""
    path = layout.path(results, "power", row)
    try:
        samples = pd.read_csv(path, dtype={"block": str})
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return None
    if missing := {"t_s", "watts", "configuration", "process", "block"} - set(samples):
        raise DataError(f"{path}: the column {min(missing)} is missing; it has {', '.join(samples)}.")
    samples = samples[(samples["configuration"] == "method") & (samples["process"] == 0)].dropna(subset=["watts"])
    if samples.empty:
        return None
    seconds = samples["t_s"] - samples["t_s"].iloc[0]
    edges = seconds.groupby(samples["block"], sort=False).agg(["min", "max"])
    spans = [(name, low, high) for name, low, high in edges.itertuples() if not name.startswith("idle")]
    return seconds.to_numpy(), samples["watts"].to_numpy(), spans


def _draw_trace(axes, seconds, watts):
    """Draw the samples as a line; 3,000 samples or more as the mean and range of 1,000 intervals."""
    if len(watts) < 3000:
        axes.plot(seconds, watts, color=PALETTE[0], linewidth=0.7)
        return
    edges = np.linspace(0, len(watts), 1001).astype(int)[:-1]
    low, high = np.minimum.reduceat(watts, edges), np.maximum.reduceat(watts, edges)
    mean = np.add.reduceat(watts, edges) / np.diff(np.append(edges, len(watts)))
    axes.fill_between(seconds[edges], low, high, color=PALETTE[0], alpha=0.25, linewidth=0)
    axes.plot(seconds[edges], mean, color=PALETTE[0], linewidth=0.7)


def _why_no_energy(summary):
    reasons = summary.loc[summary["baseline"].astype(bool), "energy_reason"].dropna()
    return str(reasons.iloc[0]).rstrip(".") + "." if len(reasons) else "the meter keeps no samples."
