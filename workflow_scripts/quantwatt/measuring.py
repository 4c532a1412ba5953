"""Latency and energy of any callable, with intervals: `run` does one batch, `meter` reads energy.

No torch and no files. `synchronize` waits for the device; `clock` returns seconds and is replaced in tests.
The block is the unit of energy: samples of one sensor are not independent, blocks are.
"""

import time
from dataclasses import dataclass

import numpy as np

from quantwatt import intervals
from quantwatt.manifest import finite
from quantwatt.meters.trace import Trace, hold_integral_j

WARN_DIFFERENCE = 0.03  # counter against integral of power
FAIL_DIFFERENCE = 0.05
VOID_LIMIT = 3  # void blocks that are repeated before the energy is given up
MIN_REPEATS, MAX_REPEATS = 5, 1000


@dataclass(frozen=True)
class Block:
    """One energy block; a `void` one is kept, with its `reason`."""

    block: int  # position in time, void blocks included
    images: int
    seconds: float
    energy_j: float | None  # None where the meter gave none
    integral_j: float | None  # None where power was not read apart from the counter
    void: bool
    reason: str | None
    trace: Trace


def nothing():
    """The `synchronize` of a device that computes in step, such as the CPU."""


def warm_up(run, seconds, synchronize=nothing, clock=time.perf_counter):
    """Run for `seconds` and at least twice (the first run allocates and compiles); returns how often."""
    start, n_runs = clock(), 0
    while n_runs < 2 or clock() - start < seconds:
        run()
        synchronize()
        n_runs += 1
    return n_runs


def measure_latency(run, seconds=0.0, repeats=MIN_REPEATS, synchronize=nothing, clock=time.perf_counter):
    """Seconds of each run, one after another, for `seconds` and at least `repeats` times. [n]"""
    times, start = [], clock()
    while len(times) < repeats or (clock() - start < seconds and len(times) < MAX_REPEATS):
        synchronize()
        before = clock()
        run()
        synchronize()
        times.append(clock() - before)
    return np.array(times)


def summarize_latency(seconds, images_per_run):
    """Seconds per image: the median with its 95 % interval, and the spread of the runs.

    Args:
        seconds: [n] of `measure_latency`.
    """
    per_image = np.asarray(seconds, np.float64) / images_per_run
    median, low, high = intervals.bootstrap_median(per_image)
    p10, p90 = np.percentile(per_image, [10, 90])
    return {
        "median": median,
        "low": finite(low),
        "high": finite(high),
        "mean": float(per_image.mean()),
        "std": finite(per_image.std(ddof=1)) if len(per_image) > 1 else None,
        "min": float(per_image.min()),
        "max": float(per_image.max()),
        "p10": float(p10),
        "p90": float(p90),
        "n": len(per_image),
    }


def measure_energy(
    run,
    meter,
    block_s,
    n_blocks,
    images_per_run,
    synchronize=nothing,
    progress=None,
    void_limit=VOID_LIMIT,
    clock=time.perf_counter,
):
    """Blocks of at least `block_s` seconds until `n_blocks` are good or more than `void_limit` were void.

    Args:
        run: generates `images_per_run` images.
        progress: a tqdm bar of images, or None.
    Returns:
        [Block], in order of time, void ones included.
    """
    blocks, n_good = [], 0
    while n_good < n_blocks and len(blocks) - n_good <= void_limit:
        block = _measure_block(run, meter, block_s, images_per_run, synchronize, progress, clock, len(blocks))
        blocks.append(block)
        n_good += not block.void
        if progress is not None and block.energy_j is not None:
            progress.set_postfix(watts=f"{block.energy_j / block.seconds:.1f}")
    return blocks


def _measure_block(run, meter, block_s, images_per_run, synchronize, progress, clock, index):
    synchronize()
    meter.start()
    start, images = clock(), 0
    while images == 0 or clock() - start < block_s:
        run()
        synchronize()
        images += images_per_run
        if progress is not None:
            progress.update(images_per_run)
    seconds = clock() - start
    trace = meter.stop()
    check, reason = crosscheck(trace), trace.fault
    if reason is None and check is not None and check["verdict"] == "fail":
        reason = f"counter and integral of power differ by {check['difference']:.1%}"
    integral_j = None if check is None else check["integral_j"]
    return Block(index, images, seconds, trace.energy_j, integral_j, reason is not None, reason, trace)


def crosscheck(*traces):
    """The energy counter against the integral of the sampled power, over the same edges.

    Returns:
        {"counter_j", "integral_j", "difference", "verdict": "ok" | "warn" | "fail"}, summed over `traces`;
        None where no trace has both as separate readings. `difference` is signed and relative to the counter.
    """
    counter_j, integral_j = 0.0, 0.0
    for trace in traces:
        if trace.energy_j is None or trace.counter_j is None or trace.watts_from_counter:
            continue
        times = trace.timestamps_s
        counter_j += trace.energy_j
        integral_j += hold_integral_j(times, trace.watts, times[0], times[-1])
    if counter_j == 0:
        return None
    difference = integral_j / counter_j - 1
    verdict = "ok" if abs(difference) <= WARN_DIFFERENCE else "warn"
    verdict = "fail" if abs(difference) > FAIL_DIFFERENCE else verdict
    return {
        "counter_j": counter_j,
        "integral_j": integral_j,
        "difference": difference,
        "verdict": verdict,
    }


def idle_power(meter, seconds, sleep=time.sleep):
    """(mean watts or None, Trace) over `seconds` of doing nothing."""
    meter.start()
    sleep(seconds)
    trace = meter.stop()
    if trace.energy_j is None:
        return None, trace
    return trace.energy_j / float(trace.timestamps_s[-1] - trace.timestamps_s[0]), trace


def summarize_energy(blocks, n_blocks, idle_w=None):
    """Joules per image, the mean over good blocks and its interval.

    Args:
        idle_w: mean idle power in watts, or None where it was not read.
    Returns:
        (energy, None) with energy = {"value", "low", "high", "net", "idle_w", "mean_w"}, `value` gross and
        `net` less the idle power; or (None, reason) where fewer than `n_blocks` blocks are good.
    """
    good = [block for block in blocks if not block.void]
    if len(good) < n_blocks:
        void = [block for block in blocks if block.void]
        last = void[-1].reason if void else "they were not run"
        return None, f"{len(void)} of {len(blocks)} blocks were void, the last because {last}"
    value, low, high = intervals.student_mean([block.energy_j / block.images for block in good])
    seconds_per_image = np.mean([block.seconds / block.images for block in good])
    energy = {
        "value": value,
        "low": finite(low),
        "high": finite(high),
        "net": None if idle_w is None else float(value - idle_w * seconds_per_image),
        "idle_w": idle_w,
        "mean_w": sum(block.energy_j for block in good) / sum(block.seconds for block in good),
    }
    return energy, None
