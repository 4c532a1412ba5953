"""The baseline's sampled power while it was measured against itself: the blocks of both sides, and the phases."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantwatt.artifacts import layout
from quantwatt.artifacts.errors import DataError
from quantwatt.report.figures import GREY, INK, NARROW, PALETTE, WIDE, Inputs, sentence
from quantwatt.report.tables import first_samplings

FIRST_S = 60  # seconds of the process that are drawn at most
SHADED = 24  # blocks that are drawn at most: of short blocks, a minute would be a barcode
SHADES = {"method": "#e3edf6", "baseline": "#f4f6f8"}
PHASE = "#f6eee3"
MEAN_S = 1  # of an estimate
LEAST_WIDTH = 0.02  # share of the axis from which on a phase's name has room


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
            axes.axvspan(start, end, color=SHADES.get(name, PHASE), linewidth=0, zorder=0)
            if name not in SHADES and end - start > LEAST_WIDTH * seconds.max():
                axes.text((start + end) / 2, 0.02, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
                          rotation=90, fontsize=7, color=GREY, zorder=4,
                          bbox={"facecolor": PHASE, "edgecolor": "none", "pad": 0.5})  # fmt: skip
        _draw_trace(axes, seconds, watts)
        if pd.notna(row["idle_w"]):
            axes.axhline(row["idle_w"], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        estimated = ", estimated" if row["meter"] == "estimate" else ""
        idle = f"; dashed: idle {row['idle_w']:.3g} W" if pd.notna(row["idle_w"]) else ""
        axes.set_title(f"{row['model']} {row['method']}: power (W{estimated}){idle}", fontsize=8 if narrow else 9.5)
        axes.set_xlabel("seconds; shaded: the blocks of a pair, and phases", fontsize=8 if narrow else 9)
        axes.set_ylim(0, None)
        axes.set_xlim(seconds.min(), seconds.max())
    return figure


def _trace(results, row):
    """(seconds, watts, [(side or phase, start, end)]) of the first process in power.csv; None if no samples.

    The spans are the blocks of the whole, by their side, and neighbouring blocks of a phase together.
    """
    path = layout.path(results, "power", row)
    try:
        samples = pd.read_csv(path, dtype={"block": str})
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return None
    if missing := {"t_s", "watts", "configuration", "process", "block"} - set(samples):
        raise DataError(f"{path}: the column {min(missing)} is missing; it has {', '.join(samples)}.")
    samples = samples[(samples["process"] == 0) & ~samples["block"].str.startswith("idle")]
    samples = samples.dropna(subset=["watts"]).sort_values("t_s", kind="stable")
    if row["meter"] == "estimate":
        samples = _smoothed(samples)
    if samples.empty:
        return None
    seconds, is_phase = samples["t_s"] - samples["t_s"].iloc[0], ~samples["block"].str.isdigit()
    names = samples["block"].where(is_phase, samples["configuration"])
    changes = names.ne(names.shift()) | samples["block"].ne(samples["block"].shift())
    spans = [
        (names[own.index[0]], own.iloc[0], own.iloc[-1])
        for _, own in seconds[seconds < FIRST_S].groupby(changes.cumsum())
    ][:SHADED]
    shown = (seconds <= spans[-1][2]).to_numpy()
    return seconds.to_numpy()[shown], samples["watts"].to_numpy()[shown], spans


def _smoothed(samples):
    """The mean of a second around each sample: in milliseconds there is a tick of processor time too many or few."""
    gaps = samples["t_s"].diff()
    samples = samples[~(gaps < gaps.median() / 2)]
    times = pd.to_timedelta(samples["t_s"], unit="s")
    means = samples["watts"].set_axis(pd.TimedeltaIndex(times)).rolling(f"{MEAN_S}s", center=True).mean()
    return samples.assign(watts=means.to_numpy())


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
