"""The readings of a meter in one window, and their energy.

A reading that failed is NaN, never 0. If the energy cannot be trusted, `energy_j` is None and `fault` says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

STEP_W = 20_000  # no machine draws more: a counter that rose faster was reset, and the reset was taken for a wrap
PUBLISHED_S = 0.1  # a GPU updates its counter this often: a step may cover this much more time than two readings span
STILL_S = 1.0  # where the counter is the only reading, it moves at least this often, also on an idle machine
MISSED_SHARE = 0.05  # largest share of missed power readings; the difference of counter and integral may be as large
GAP_S = 0.5  # longest time for which a reading is held; sensors publish every 100 ms or less


@dataclass(frozen=True)
class Trace:
    """The samples from start to stop; the first sample is at the start, the last at the stop."""

    timestamps_s: np.ndarray  # [n] seconds of time.perf_counter, the middle of each reading
    watts: np.ndarray  # [n] each value is held until the next sample; NaN where the reading failed
    counter_j: np.ndarray | None  # [n] readings of the energy counter, NaN where a reading failed; None: no counter
    sensor_s: np.ndarray  # [n] the sensor's timestamp of each reading, on the sensor's clock; NaN where it has none
    energy_j: float | None  # counter at the end minus at the start; without a counter, the integral of the watts
    source: str  # what was read: field and scope, or files
    n_missed: int  # readings that failed or were an interval or more late
    n_zero: int  # power readings of exactly 0 W
    fault: str | None = None  # why energy_j is None
    watts_from_counter: bool = False  # the watts are the counter's slope, so their integral is no cross-check
    sampler: Mapping[str, Any] | None = (
        None  # cost of the sampler: "cpu_s" in "wall_s"; delay of its readings: "late_p50_ms", "late_p99_ms"
    )
    beside: dict | None = None  # {device: joules} of secondary meters from start to stop; a value not read is None

    def energy_between(self, start_s: float, stop_s: float) -> float | None:
        """Joules of a part of the trace, with the counter interpolated; None if `energy_j` is None.

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


def hold_integral_j(timestamps_s: np.ndarray, watts: np.ndarray, start_s: float, stop_s: float) -> float | None:
    """Integrate watts from `start_s` to `stop_s`: each value is held until the next sample, the first from `start_s`.

    Repeated values are used like all others. At a failed reading (NaN), the previous value is held.

    Args:
        timestamps_s, watts: [n], in order of time.
    Returns:
        Joules, or None where no reading succeeded.
    """
    timestamps_s, watts = np.asarray(timestamps_s, np.float64), np.asarray(watts, np.float64)
    read = ~np.isnan(watts)
    if not read.any():
        return None
    edges = np.concatenate([[start_s], timestamps_s[read][1:], [stop_s]])  # [n + 1]
    return float(np.dot(watts[read], np.diff(np.clip(edges, start_s, stop_s))))


def empty_trace(source: str, fault: str | None) -> Trace:
    """Return a Trace without samples; `fault` says why there are none."""
    none = np.empty(0)
    return Trace(none, none, None, none, None, source, 0, 0, fault)


def trace_of(
    samples: np.ndarray, n_late: int, source: str, sampler: Mapping[str, Any] | None = None, fault: str | None = None
) -> Trace:
    """Build the Trace of samples; it has no energy where `fault_of` finds a fault.

    Args:
        samples: [n] of (time in s, watts, counter in J, the sensor's timestamp in s), the first at the start and the
            last at the stop. None or NaN: not read. A sensor without timestamps leaves out the fourth value.
        n_late: readings that are not in `samples`, because they were an interval or more late.
        sampler: cost of the sampler, as in Trace.
        fault: why the sampler gives no energy, or None.
    """
    columns = np.array(list(samples), np.float64).T  # [3 or 4, n]
    times, watts, counter = columns[:3]
    sensor_s = columns[3] if len(columns) == 4 else np.full(len(times), np.nan)
    has_counter, has_watts = not np.isnan(counter).all(), not np.isnan(watts).all()
    n_missed = n_late + int((np.isnan(watts) & np.isnan(counter)).sum())
    if has_counter and has_watts:
        n_missed = n_late + int((np.isnan(watts) | np.isnan(counter)).sum())
    fault = fault or fault_of(times, watts, counter, n_late)
    energy_j = None
    if fault is None:
        energy_j = float(counter[-1] - counter[0]) if has_counter else hold_integral_j(times, watts, *times[[0, -1]])
    if has_counter and not has_watts and len(times) > 1:
        watts = np.diff(counter) / np.diff(times)
        watts = np.append(watts, watts[-1])  # the slope ahead of each sample
    return Trace(
        timestamps_s=times,
        watts=watts,
        counter_j=counter if has_counter else None,
        sensor_s=sensor_s,
        energy_j=energy_j,
        source=source,
        n_missed=n_missed,
        n_zero=int((watts == 0).sum()) if has_watts else 0,
        fault=fault,
        watts_from_counter=has_counter and not has_watts,
        sampler=sampler,
    )


def fault_of(times: np.ndarray, watts: np.ndarray, counter: np.ndarray, n_late: int) -> str | None:
    """Return why these readings give no energy, or None.

    A counter that stands still for a while is a fault only if it is the only reading. If power is read too,
    `protocol.crosscheck` compares the two.

    Args:
        times, watts, counter: [n], NaN where a reading failed, as in Trace.
        n_late: readings that were an interval or more late, and are not among the n.
    """
    if not np.isnan(counter).all():
        return _fault_of_counter(times, counter, alone=np.isnan(watts).all())
    if not np.isnan(watts).all():
        return _fault_of_power(times, watts, n_late)
    return "no reading succeeded"


def _fault_of_counter(times, counter, alone):
    if np.isnan(counter[[0, -1]]).any():
        return "the energy counter could not be read at both ends"
    read = ~np.isnan(counter)
    times, steps_j = times[read], np.diff(counter[read])
    if (steps_j < 0).any():
        return "the energy counter was reset"
    if steps_j.sum() <= 0:
        return "the energy counter did not move"
    steps_s = np.diff(times)
    leap = np.argmax(steps_j - STEP_W * steps_s)
    if steps_j[leap] > STEP_W * (steps_s[leap] + PUBLISHED_S):
        return f"the energy counter rose by {steps_j[leap]:.0f} J in {steps_s[leap]:.2f} s, as no machine can"
    moved = np.flatnonzero(steps_j)
    still_s = np.max(times[np.append(moved, -1)] - times[np.append(0, moved + 1)])
    if alone and still_s >= STILL_S:
        return f"the energy counter stood still for {still_s:.1f} s"
    return None


def _fault_of_power(times, watts, n_late):
    good, n_zero = ~np.isnan(watts), int((watts == 0).sum())
    if n_zero:
        return f"{n_zero} of {good.sum()} power readings were 0 W"
    missed = (n_late + (~good).sum()) / (n_late + len(watts))
    if missed > MISSED_SHARE:
        return f"{missed:.0%} of the power readings were missed, and there is no energy counter"
    gap_s = np.diff([times[0], *times[good], times[-1]]).max()
    if gap_s > GAP_S:
        return f"no power was read for {gap_s:.1f} s, and there is no energy counter"
    return None
