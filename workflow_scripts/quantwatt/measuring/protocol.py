"""Measure time and energy of a callable in blocks: `run` computes one batch, `meter` reads energy.

This module uses neither torch nor files. `synchronize` waits for the device; `clock` returns seconds, and tests replace
it. The samples of one sensor are not independent, so no interval comes from them: pairs.py compares blocks of two
callables that take turns.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quantwatt import intervals
from quantwatt.artifacts.manifest import finite
from quantwatt.measuring.meters import Meter
from quantwatt.measuring.meters.trace import Trace, hold_integral_j

if TYPE_CHECKING:
    from quantwatt.measuring.meters.neighbours import Around

WARN_DIFFERENCE = 0.03  # relative difference of the energy counter and the integral of power
FAIL_DIFFERENCE = 0.05
INVALID_LIMIT = 3  # invalid blocks of a process that are repeated
MIN_REPEATS, MAX_REPEATS = 5, 1000
STEADY_SLOPE = 1.0  # °C per minute
STEADY_LIMIT_S = 600
STEADY_EVERY_S = 1.0  # least time between two temperature readings, because reading costs work that is not measured
STEADY_READINGS = 3  # fewest readings for a slope


@dataclass(frozen=True)
class Block:
    """One energy block. An `invalid` block is kept, with its `reason`."""

    block: int  # position in time, invalid blocks included
    images: int
    seconds: float
    energy_j: float | None  # None where the meter gave no energy
    integral_j: float | None  # integral of the power; None where power was not read separately from the counter
    invalid: bool
    reason: str | None
    trace: Trace
    runs: list = field(default_factory=list)  # (start, stop) of each run, in seconds of `clock`
    around: Mapping[str, Any] = field(default_factory=dict)  # what `neighbours.Around` saw of the machine meanwhile


class Cycle:
    """A callable that calls several runs in turn, over and over.

    After any multiple of `len(self)` calls, every run was called equally often.
    """

    def __init__(self, runs: Iterable[Callable[[], object]]):
        self.runs, self.next = list(runs), 0

    def __call__(self):
        self.runs[self.next]()
        self.next = (self.next + 1) % len(self.runs)

    def __len__(self):
        return len(self.runs)


def nothing() -> None:
    """Do nothing: the `synchronize` of a device that computes synchronously, such as the CPU."""


def warm_up(
    run: Callable[[], object],
    seconds: float,
    synchronize: Callable[[], object] = nothing,
    clock: Callable[[], float] = time.perf_counter,
    temperature: Callable[[], float | None] | None = None,
    steady_s: float = 0,
    least: int = 2,
) -> tuple[int, float | None]:
    """Run for `seconds` and at least `least` times (the first run allocates and compiles), then until it is warm.

    Args:
        temperature: function that returns °C, or None where it is unknown. Where it is known, the warm-up goes on until
            the slope over the last `steady_s` seconds is below STEADY_SLOPE, for at most STEADY_LIMIT_S.
    Returns:
        (number of runs, slope in °C per minute or None).
    """
    start, n_runs, readings, slope, due = clock(), 0, [], None, clock()
    while True:
        run()
        synchronize()
        n_runs += 1
        if temperature is not None and steady_s > 0 and clock() >= due:
            due = clock() + STEADY_EVERY_S
            degrees = temperature()
            if degrees is not None:
                readings.append((clock(), degrees))
                slope = slope_per_minute(readings, steady_s)
        warm = not readings or (slope is not None and abs(slope) < STEADY_SLOPE) or clock() - start >= STEADY_LIMIT_S
        if n_runs >= least and clock() - start >= seconds and warm:
            return n_runs, slope


def slope_per_minute(seen: Sequence[tuple[float, float]], window_s: float) -> float | None:
    """Slope of the least-squares line through the last `window_s` seconds, or STEADY_READINGS readings if more.

    Args:
        seen: readings [(seconds, value)], in order.
    Returns:
        The slope per minute; None while the readings are fewer than STEADY_READINGS or span less than `window_s`.
    """
    end = seen[-1][0]
    count = max(STEADY_READINGS, sum(seconds >= end - window_s for seconds, _ in seen))
    if len(seen) < STEADY_READINGS or end - seen[0][0] < window_s:
        return None
    recent = np.array(seen[-count:])
    return float(60 * np.polyfit(recent[:, 0] - end, recent[:, 1], 1)[0])


def measure_latency(
    run: Callable[[], object],
    seconds: float = 0.0,
    repeats: int = MIN_REPEATS,
    synchronize: Callable[[], object] = nothing,
    clock: Callable[[], float] = time.perf_counter,
    cycle: int = 1,
) -> np.ndarray:
    """Time each run, for at least `seconds` and `repeats` runs, and in whole cycles.

    Returns:
        [n] seconds per run; n is at most MAX_REPEATS, rounded up to a whole cycle, unless `repeats` is more.
    """
    times, start = [], clock()
    while len(times) < repeats or len(times) % cycle or (clock() - start < seconds and len(times) < MAX_REPEATS):
        synchronize()
        before = clock()
        run()
        synchronize()
        times.append(clock() - before)
    return np.array(times)


def summarize_latency(processes: Sequence[Sequence[float] | np.ndarray], images_per_run: int) -> dict[str, Any]:
    """Summarize seconds per image: the median with its 95 % interval over processes and runs, and the runs' spread.

    Args:
        processes: the result of `measure_latency`, [n] seconds per run, of each fresh process.
    """
    processes = [np.asarray(seconds, np.float64) / images_per_run for seconds in processes]
    per_image = np.concatenate(processes)
    _, low, high = intervals.mean_of_processes(processes, np.median)
    p10, p90 = np.percentile(per_image, [10, 90])
    return {
        "median": float(np.mean([np.median(seconds) for seconds in processes])),
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
    run: Callable[[], object],
    meter: Meter,
    block_s: float,
    n_blocks: int,
    images_per_run: int,
    synchronize: Callable[[], object] = nothing,
    after_block: Callable[[Block], object] | None = None,
    invalid_limit: int = INVALID_LIMIT,
    clock: Callable[[], float] = time.perf_counter,
    cycle: int = 1,
) -> list[Block]:
    """Measure blocks of at least `block_s` seconds until `n_blocks` are valid or more than `invalid_limit` are invalid.

    Args:
        run: generates `images_per_run` images; the number of runs in a block is a multiple of `cycle`.
        after_block: function that is called with each Block as it ends, for a progress bar; or None.
    Returns:
        [Block], in order of time, invalid blocks included.
    """
    blocks, n_good = [], 0
    while n_good < n_blocks and len(blocks) - n_good <= invalid_limit:
        block = measure_block(run, meter, block_s, images_per_run, synchronize, clock, cycle, len(blocks))
        blocks.append(block)
        n_good += not block.invalid
        if after_block is not None:
            after_block(block)
    return blocks


def measure_block(
    run: Callable[[], object],
    meter: Meter,
    block_s: float,
    images_per_run: int,
    synchronize: Callable[[], object] = nothing,
    clock: Callable[[], float] = time.perf_counter,
    cycle: int = 1,
    index: int = 0,
    around: "Around | None" = None,
) -> Block:
    """Measure one block of at least `block_s` seconds and a multiple of `cycle` runs.

    Args:
        index: number of the block; around: watches the rest of the machine, or None.
    """
    synchronize()
    if around:
        around.start()
    meter.start()
    start, runs = clock(), []
    while not runs or len(runs) % cycle or runs[-1][1] - start < block_s:
        before = clock()
        run()
        synchronize()
        runs.append((before, clock()))
    seconds, images = runs[-1][1] - start, len(runs) * images_per_run
    trace = meter.stop()
    seen = around.stop(seconds) if around else {}
    check, reason = crosscheck(trace), trace.fault
    if reason is None and check is not None and check["verdict"] == "fail":
        reason = f"counter and integral of power differ by {check['difference']:.1%}"
    integral_j = None if check is None else check["integral_j"]
    return Block(index, images, seconds, trace.energy_j, integral_j, reason is not None, reason, trace, runs, seen)


def crosscheck(*traces: Trace) -> dict[str, Any] | None:
    """Compare the energy counter with the integral of the sampled power, over the same time span.

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
        integral_j += hold_integral_j(times, trace.watts, times[0], times[-1]) or 0.0
    return verdict_of(counter_j, integral_j)


def verdict_of(counter_j: float, integral_j: float) -> dict[str, Any] | None:
    """Return the result of `crosscheck` for the two sums; None where nothing was compared."""
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


def idle_power(
    meter: Meter, seconds: float, sleep: Callable[[float], object] = time.sleep
) -> tuple[float | None, Trace]:
    """Return (mean watts or None, Trace) over `seconds` without work."""
    meter.start()
    sleep(seconds)
    trace = meter.stop()
    if trace.energy_j is None:
        return None, trace
    return trace.energy_j / float(trace.timestamps_s[-1] - trace.timestamps_s[0]), trace


def summarize_energy(
    processes: Sequence[Sequence[Block]], idle_w: float | None = None
) -> tuple[dict[str, Any] | None, str | None]:
    """Compute joules per image: the mean over processes of their valid blocks, and its interval.

    Args:
        processes: [Block] of each fresh process.
        idle_w: mean idle power in watts, or None where it was not read.
    Returns:
        (energy, None) with energy = {"value", "low", "high", "net", "idle_w", "mean_w"}: `value` is gross, `net` is
        without the idle power. (None, reason) where a process has no valid block.
    """
    all_blocks = [block for blocks in processes for block in blocks]
    valid = good_blocks(all_blocks)
    if not all(map(good_blocks, processes)):
        invalid = [block for block in all_blocks if block.invalid]
        return None, f"{len(invalid)} of {len(all_blocks)} blocks were invalid, the last because {invalid[-1].reason}"
    value, low, high = intervals.mean_of_processes(joules_per_image(processes))
    seconds_per_image = np.mean([block.seconds / block.images for block in valid])
    energy = {
        "value": value,
        "low": finite(low),
        "high": finite(high),
        "net": None if idle_w is None else float(value - idle_w * seconds_per_image),
        "idle_w": idle_w,
        "mean_w": sum(map(_joules, valid)) / sum(block.seconds for block in valid),
    }
    return energy, None


def good_blocks(blocks: Sequence[Block]) -> list[Block]:
    return [block for block in blocks if not block.invalid]


def joules_per_image(processes: Sequence[Sequence[Block]]) -> list[np.ndarray]:
    """Joules per image of each process's valid blocks, [n valid blocks] each."""
    return [np.array([_joules(block) / block.images for block in good_blocks(blocks)]) for blocks in processes]


def _joules(block: Block) -> float:
    """Energy of a valid block, which always has one."""
    if block.energy_j is None:
        raise ValueError(f"block {block.block} is valid but has no energy")
    return block.energy_j
