"""What a meter read between two moments, and the energy in it.

A reading that failed is NaN, never 0: a trace without a trustworthy energy has `energy_j` None and says why.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trace:
    """The samples from start to stop; the first and the last sample lie on those edges."""

    timestamps_s: np.ndarray  # [n] seconds of time.perf_counter, the middle of each reading
    watts: np.ndarray  # [n] each holds until the next sample; NaN where the reading failed
    counter_j: np.ndarray | None  # [n] the energy counter's readings, NaN where one failed; None without a counter
    energy_j: float | None  # counter at the end minus at the start; without a counter, the integral of the watts
    source: str  # what was read, field and scope or files
    n_missed: int  # readings that failed or came an interval or more too late
    n_zero: int  # power readings of exactly 0 W
    fault: str | None = None  # why energy_j is None
    watts_from_counter: bool = False  # the watts are the counter's slope, so their integral checks nothing

    def energy_between(self, start_s, stop_s):
        """Joules of a part of the trace, the counter interpolated between its readings; None where `energy_j` is.

        Args:
            start_s, stop_s: seconds of time.perf_counter, inside the trace.
        """
        if self.energy_j is None:
            return None
        if self.counter_j is None:
            return hold_integral_j(self.timestamps_s, self.watts, start_s, stop_s)
        read = ~np.isnan(self.counter_j)
        edges = np.interp([start_s, stop_s], self.timestamps_s[read], self.counter_j[read])
        return float(edges[1] - edges[0])


def hold_integral_j(timestamps_s, watts, start_s, stop_s):
    """Joules from `start_s` to `stop_s`, each value held until the next sample, the first back to `start_s`.

    Equal neighbours count like any others, and a failed reading (NaN) leaves the value before it in force.

    Args:
        timestamps_s, watts: [n], times rising.
    Returns:
        float, or None where no reading succeeded.
    """
    timestamps_s, watts = np.asarray(timestamps_s, np.float64), np.asarray(watts, np.float64)
    read = ~np.isnan(watts)
    if not read.any():
        return None
    edges = np.concatenate([[start_s], timestamps_s[read][1:], [stop_s]])  # [n + 1]
    return float(np.dot(watts[read], np.diff(np.clip(edges, start_s, stop_s))))


def trace_of(samples, n_late, source):
    """The Trace of a list of (time in s, watts or None, counter in J or None), first and last on the edges.

    A counter that fell was reset and one that stood still was frozen: either way the trace has no energy.
    """
    times, watts, counter = (np.array(column, np.float64) for column in zip(*samples, strict=True))
    has_counter, has_watts = not np.isnan(counter).all(), not np.isnan(watts).all()
    n_missed = n_late + int((np.isnan(watts) & np.isnan(counter)).sum())
    if has_counter and has_watts:
        n_missed = n_late + int((np.isnan(watts) | np.isnan(counter)).sum())
    energy_j, fault = None, None
    if has_counter:
        steps = np.diff(counter[~np.isnan(counter)])
        if np.isnan(counter[[0, -1]]).any():
            fault = "the energy counter could not be read at both ends"
        elif (steps < 0).any():
            fault = "the energy counter was reset"
        elif steps.sum() <= 0:
            fault = "the energy counter did not move"
        else:
            energy_j = float(counter[-1] - counter[0])
    elif has_watts:
        energy_j = hold_integral_j(times, watts, times[0], times[-1])
        if not energy_j > 0:
            energy_j, fault = None, "every power reading was 0 W"
    else:
        fault = "no reading succeeded"
    if has_counter and not has_watts and len(times) > 1:
        watts = np.diff(counter) / np.diff(times)
        watts = np.append(watts, watts[-1])  # the slope ahead of each sample
    return Trace(
        timestamps_s=times,
        watts=watts,
        counter_j=counter if has_counter else None,
        energy_j=energy_j,
        source=source,
        n_missed=n_missed,
        n_zero=int((watts == 0).sum()) if has_watts else 0,
        fault=fault,
        watts_from_counter=has_counter and not has_watts,
    )
