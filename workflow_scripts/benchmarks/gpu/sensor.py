"""How this board's power sensor behaves: how often it publishes, how it follows a step, and counter against integral.

Its readings are also turned into the power of a steady load, without the error of a counter that moves every 100 ms.
"""

import contextlib
import time

import numpy as np
import torch

from benchmarks.gpu import stages
from quantwatt.measuring import instruments, protocol
from quantwatt.measuring.meters import open_meter
from quantwatt.measuring.meters.trace import Trace

LEAST_UPDATES = 5  # of the counter, from which a power is computed
SIZE = {"true": 8192, "tiny": 256}  # rows and columns of the matrices of the load
DUTY, PERIOD_S = 0.25, 0.4
RISEN = 0.9  # share of a step that counts as followed
INTERVAL_MS = 2


def updates(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """(times in s, joules) at which the counter was first seen to have moved, without the first reading."""
    read = ~np.isnan(trace.counter_j)
    times, counter = trace.timestamps_s[read], trace.counter_j[read]
    moved = np.flatnonzero(np.diff(counter)) + 1
    return times[moved], counter[moved]


def steady_watts(trace: Trace) -> float | None:
    """Mean power of a trace whose load does not change; None if there is no energy.

    Between the first and the last update of the counter inside the trace, time and energy belong together. From end to
    end they do not: the counter may be up to one update behind at either end, 5 % of two seconds at 100 ms.
    """
    if trace.energy_j is None:
        return None
    if trace.counter_j is not None:
        times, joules = updates(trace)
        if len(times) > LEAST_UPDATES:
            return float((joules[-1] - joules[0]) / (times[-1] - times[0]))
    return trace.energy_j / float(trace.timestamps_s[-1] - trace.timestamps_s[0])


def load(device: str, size: str):
    """Return (function that computes one product of large matrices of random bfloat16, synchronize)."""
    left, right = (torch.randn(SIZE[size], SIZE[size], device=device, dtype=torch.bfloat16) for _ in range(2))
    return (lambda: torch.mm(left, right)), instruments.synchronize_of(device)


def busy(run, synchronize, seconds: float) -> None:
    """Compute for some seconds, a few products at a time."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        run()
        synchronize()


def duty(run, synchronize, seconds: float) -> None:
    """Compute for DUTY of each period, and wait for the rest."""
    until = time.perf_counter() + seconds
    while (start := time.perf_counter()) < until:
        busy(run, synchronize, DUTY * PERIOD_S)
        time.sleep(max(0.0, start + PERIOD_S - time.perf_counter()))


def described(trace: Trace) -> dict:
    """The figures of one phase: counter and integral, update periods, and lateness of the sensor's own timestamps."""
    found = {"seconds": float(np.ptp(trace.timestamps_s)) if len(trace.timestamps_s) else 0.0,
             "energy_j": trace.energy_j, "fault": trace.fault, "n": len(trace.timestamps_s), "n_missed": trace.n_missed,
             "crosscheck": protocol.crosscheck(trace), "steady_w": steady_watts(trace)}  # fmt: skip
    if trace.counter_j is not None and len(trace.timestamps_s):
        found["counter_period_ms"] = periods(updates(trace)[0])
    read = ~np.isnan(trace.watts)
    if read.any():
        times, watts = trace.timestamps_s[read], trace.watts[read]
        found["power_period_ms"] = periods(times[np.flatnonzero(np.diff(watts)) + 1])
        found["power_w"] = dict(zip(("p10", "p50", "p90"), np.percentile(watts, [10, 50, 90]).tolist(), strict=True))
    stamps = trace.sensor_s[~np.isnan(trace.sensor_s)]
    found["timestamp_period_ms"] = periods(np.unique(stamps))
    return found


def periods(times: np.ndarray) -> dict | None:
    """{"p10", "p50", "p90"} of the times between updates, ms; None for fewer than three."""
    if len(times) < 3:
        return None
    return dict(zip(("p10", "p50", "p90"), (1000 * np.percentile(np.diff(times), [10, 50, 90])).tolist(), strict=True))


def step_response(trace: Trace, begin_s: float) -> dict | None:
    """Delay and rise of the instant power after a load began; None where the power was not read.

    Returns:
        {"before_w", "after_w", "first_ms": until the power was first seen higher by a tenth of the step, "risen_ms":
        until RISEN of it}; the times are None where the power did not rise by half.
    """
    read = ~np.isnan(trace.watts)
    times, watts = trace.timestamps_s[read] - begin_s, trace.watts[read]
    if not (times < 0).any() or not (times > 0).any():
        return None
    before, after = float(np.median(watts[times < 0])), float(np.median(watts[times > times[-1] / 2]))
    found = {"before_w": before, "after_w": after, "first_ms": None, "risen_ms": None}
    if after > 1.5 * before:
        for key, share in (("first_ms", 0.1), ("risen_ms", RISEN)):
            above = times[(times > 0) & (watts >= before + share * (after - before))]
            found[key] = float(1000 * above[0]) if len(above) else None
    return found


def run(record) -> None:
    """The stage: idle, a step, load, a quarter of the time, and idle again, each under the meter of its own."""
    product, synchronize = load(record.device, record.size)
    busy(product, synchronize, 0.5 if record.size == "tiny" else 2.0)
    idle_s, load_s = (0.6, 0.8) if record.size == "tiny" else (5.0, 10.0)
    settings = stages.metering(record.meter, INTERVAL_MS)
    with contextlib.closing(open_meter(settings, device=record.device)) as meter:
        record.keep(device=meter.provenance())
        phases = {
            "idle": lambda: time.sleep(idle_s),
            "load": lambda: busy(product, synchronize, load_s),
            "quarter": lambda: duty(product, synchronize, load_s),
            "idle again": lambda: time.sleep(idle_s),
        }
        time.sleep(idle_s / 2)
        for name, phase in phases.items():
            meter.start()
            phase()
            record.keep(phases=record.found.get("phases", {}) | {name: described(meter.stop())})
        time.sleep(idle_s / 2)
        meter.start()
        time.sleep(idle_s / 2)
        begin_s = time.perf_counter()
        busy(product, synchronize, load_s / 2)
        record.keep(step=step_response(meter.stop(), begin_s))
