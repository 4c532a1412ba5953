"""The power of a cell's first process over time: its samples, and what ran while they were taken."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from quantwatt.artifacts import layout
from quantwatt.artifacts.errors import DataError

FIRST_S = 60  # seconds of the process that are shown at most
MEAN_S = 1  # of an estimate
COLUMNS = {"t_s", "watts", "configuration", "process", "block"}


@dataclass(frozen=True)
class Trace:
    """Samples from the first block on, and the spans of blocks and phases."""

    seconds: np.ndarray  # (n,)
    watts: np.ndarray  # (n,)
    spans: list[tuple[str, float, float]]  # (name of a side or phase, start, end), in seconds


def read(results: Any, row: Mapping[str, Any]) -> Trace | None:
    """The first minute of a cell's power.csv; None where nothing was sampled.

    The spans are the blocks of the whole, by their side ("method" or "baseline"), and neighbouring blocks of a phase
    together.

    Args:
        results: the experiment's folder.
        row: {"model", "method", "sampling", "meter"}; the samples of an estimate are averaged over a second.
    Raises:
        DataError: a column is missing.
    """
    path = layout.path(results, "power", row)
    try:
        samples = pd.read_csv(path, dtype={"block": str})
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return None
    if missing := COLUMNS - set(samples):
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
        (str(names[own.index[0]]), float(own.iloc[0]), float(own.iloc[-1]))
        for _, own in seconds[seconds < FIRST_S].groupby(changes.cumsum())
    ]
    shown = (seconds <= spans[-1][2]).to_numpy()
    return Trace(seconds.to_numpy()[shown], samples["watts"].to_numpy()[shown], spans)


def _smoothed(samples):
    """The mean of a second around each sample: in milliseconds there is a tick of processor time too many or few."""
    gaps = samples["t_s"].diff()
    samples = samples[~(gaps < gaps.median() / 2)]
    times = pd.to_timedelta(samples["t_s"], unit="s")
    means = samples["watts"].set_axis(pd.TimedeltaIndex(times)).rolling(f"{MEAN_S}s", center=True).mean()
    return samples.assign(watts=means.to_numpy())


def in_bins(trace: Trace, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(seconds, lowest, mean and highest watts) of at most `most` groups of neighbouring samples."""
    edges = np.unique(np.linspace(0, len(trace.watts), min(most, len(trace.watts)) + 1).astype(int))
    starts, counts = edges[:-1], np.diff(edges)
    low, high = np.minimum.reduceat(trace.watts, starts), np.maximum.reduceat(trace.watts, starts)
    return trace.seconds[starts], low, np.add.reduceat(trace.watts, starts) / counts, high
