"""The baseline's sampled power over time."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantwatt.figures import INK, NARROW, PALETTE, WIDE, sentence
from quantwatt.manifest import DataError
from quantwatt.tables import first_seeds


def draw(inputs, narrow):
    """The baseline's sampled power over time, with its idle power."""
    found, summary = [], first_seeds(inputs.summary)
    for _, row in summary[summary["baseline"].astype(bool)].iterrows():
        trace = _trace(inputs.results, row)
        if trace is not None:
            found.append((row, *trace))
    if not found:
        return sentence("No power was sampled: " + _why_no_energy(inputs.summary), narrow)
    figure = Figure(figsize=(NARROW if narrow else WIDE, 2.7 * len(found)), dpi=100)
    figure.subplots_adjust(left=0.13 if narrow else 0.07, right=0.98, top=1 - 0.4 / (2.7 * len(found)),
                           bottom=0.55 / (2.7 * len(found)), hspace=0.6)  # fmt: skip
    for axes, (row, seconds, watts, spans) in zip(
        figure.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True
    ):
        for start, end in spans:
            axes.axvspan(start, end, color="#eef3f8", linewidth=0, zorder=0)
        _draw_trace(axes, seconds, watts)
        if pd.notna(row["idle_w"]):
            axes.axhline(row["idle_w"], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        estimated = ", estimated" if row["meter"] == "estimate" else ""
        idle = f"; dashed: idle {row['idle_w']:.3g} W" if pd.notna(row["idle_w"]) else ""
        axes.set_title(f"{row['model']} {row['method']}: power (W{estimated}){idle}", fontsize=8 if narrow else 9.5)
        axes.set_xlabel("seconds" + ("; energy blocks shaded" if spans else ""))
        axes.set_ylim(0, None)
        axes.set_xlim(seconds.min(), seconds.max())
    return figure


def _trace(results, row):
    """(seconds, watts, [(start, end) of each block]) of a cell's power.csv, or None where it holds no sample."""
    path = Path(results) / "measurements" / row["model"] / row["method"] / row["sampling"] / "power.csv"
    try:
        samples = pd.read_csv(path)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return None
    time = next((c for c in samples if c in ("t_s", "time_s", "seconds")), None)
    power = next((c for c in samples if c in ("watts", "power_w", "w")), None)
    if time is None or power is None:
        raise DataError(f"{path}: needs a column of seconds (t_s) and one of watts; it has {', '.join(samples)}.")
    samples[[time, power]] = samples[[time, power]].apply(pd.to_numeric, errors="coerce")
    samples = samples.dropna(subset=[time, power])
    if samples.empty:
        return None
    seconds = samples[time].to_numpy() - samples[time].iloc[0]
    spans = []
    if "block" in samples:
        names = samples["block"].astype(str).to_numpy()
        blocks = [name for name in dict.fromkeys(names) if not name.startswith("idle")]
        spans = [(seconds[names == name].min(), seconds[names == name].max()) for name in blocks]
    return seconds, samples[power].to_numpy(), spans


def _draw_trace(axes, seconds, watts):
    """The samples as a line; from 3,000 on as mean and range of a thousand stretches."""
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
