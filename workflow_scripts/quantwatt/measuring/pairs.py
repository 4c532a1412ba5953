"""Measure a method and its baseline in pairs of blocks that follow each other in one process.

Drift, temperature and other programs change all that runs within the same seconds alike, so they cancel in the ratio of
a pair. Every second pair runs in reverse order (ABBA), so that a steady drift cancels too.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantwatt import intervals
from quantwatt.artifacts.manifest import finite
from quantwatt.measuring import protocol
from quantwatt.measuring.meters import Meter
from quantwatt.measuring.meters.neighbours import Around
from quantwatt.measuring.protocol import Block

METHOD, BASELINE = "method", "baseline"
WHOLE = "whole"  # the part of the work that is not a phase
SHARE_OF_PRECISION = 0.4  # standard error of one process, in half-widths of the whole interval, at which it has enough
ENOUGH_PAIRS = 4  # fewest undisturbed pairs from which their spread is estimated
PHASES_DIFFERENCE = 0.05  # largest relative difference of the sum of phases and the whole
NORMAL_MAD = 1.4826  # standard deviation of normal values over their median absolute deviation

Run = Callable[[], object]


@dataclass(frozen=True)
class Placed:
    """A block, and where it belongs: the same `pair` and `part` of the two sides make a ratio."""

    pair: int
    part: str  # WHOLE, or a phase
    side: str  # METHOD or BASELINE
    block: Block

    @property
    def disturbed(self) -> bool:
        return bool(self.block.around.get("disturbed"))


def measure(
    wholes: Mapping[str, Run],
    phases: Mapping[str, Mapping[str, Run]],
    meter: Meter,
    block_s: float,
    images_per_run: int,
    enough: Callable[[Sequence[Placed]], bool],
    phases_s: float = 0,
    cycle: int = 1,
    synchronize: Callable[[], object] = protocol.nothing,
    around: Around | None = None,
    after_block: Callable[[Block], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Placed]:
    """Measure pairs of blocks of all sides, in turns, until `enough(blocks so far)`.

    Args:
        wholes: {side: callable that generates `images_per_run` images}; a block calls it a multiple of `cycle` times.
        phases: {phase: {side: callable}}, measured in the first pairs, until each has run for `phases_s`.
        block_s: least seconds of a block; around: watches the rest of the machine.
        after_block: function that is called with each Block as it ends, for a progress bar; or None.
    Returns:
        [Placed], in order of time.
    """
    placed: list[Placed] = []
    spent = dict.fromkeys(phases, 0.0)
    pair = 0
    while not enough(placed):
        parts = {WHOLE: wholes} | {name: runs for name, runs in phases.items() if spent[name] < phases_s}
        for part, runs in parts.items():
            for side in list(runs)[:: 1 if pair % 2 == 0 else -1]:
                block = protocol.measure_block(
                    runs[side], meter, block_s, images_per_run, synchronize, clock,
                    cycle if part == WHOLE else 1, len(placed), around,
                )  # fmt: skip
                placed.append(Placed(pair, part, side, block))
                if part != WHOLE:
                    spent[part] += block.seconds
                if after_block is not None:
                    after_block(block)
        pair += 1
    return placed


def log_ratios(placed: Sequence[Placed], part: str = WHOLE, energy: bool = False, quiet: bool = False) -> np.ndarray:
    """[n] logarithms of method over baseline, per image, of one process's pairs.

    Args:
        energy: whether joules are compared, of blocks that have them, instead of seconds.
        quiet: whether to leave out pairs of which other programs disturbed a block.
    """
    pairs: dict[int, dict[str, Block]] = {}
    for block in placed:
        if block.part == part and not (energy and block.block.invalid) and not (quiet and block.disturbed):
            pairs.setdefault(block.pair, {})[block.side] = block.block
    whole = [pair for pair in pairs.values() if len(pair) == 2]
    return np.array([math.log(_value(pair[METHOD], energy) / _value(pair[BASELINE], energy)) for pair in whole])


def _value(block, energy):
    return (block.energy_j if energy else block.seconds) / block.images


def counts(placed: Sequence[Placed]) -> dict[str, int]:
    """{"n", "disturbed"}: pairs of the whole that have all sides, and those in which others disturbed a block."""
    sides = {block.side for block in placed}
    pairs: dict[int, list[Placed]] = {}
    for block in placed:
        if block.part == WHOLE:
            pairs.setdefault(block.pair, []).append(block)
    complete = [pair for pair in pairs.values() if len(pair) == len(sides)]
    return {"n": len(complete), "disturbed": sum(any(block.disturbed for block in pair) for pair in complete)}


def enough(
    least: int,
    share_s: float,
    precision: float,
    energy: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[Sequence[Placed]], bool]:
    """Return the function that ends one process's pairs.

    A process has enough once it has `least` pairs, and the spread of its undisturbed pairs says that more of them would
    not narrow the interval over processes much, or its time is over. The rule looks at the spread only, never at the
    ratio, so that it does not choose among results. The number of pairs is even: after an odd one a steady drift would
    shift all processes alike, which no interval over them shows. Invalid blocks are repeated up to INVALID_LIMIT.

    Args:
        least: pairs; share_s: seconds of this process, from the first call on; precision: of the ratio, 0: use the
            whole time; energy: whether blocks should have energy.
    """
    start: list[float] = []

    def ended(placed):
        start[:] = start or [clock()]
        blocks = [block for block in placed if block.part == WHOLE]
        with_energy = energy and sum(block.block.invalid for block in blocks) <= protocol.INVALID_LIMIT
        found = counts([block for block in blocks if not (with_energy and block.block.invalid)])
        if found["n"] < least or found["n"] % 2:
            return False
        if clock() - start[0] >= share_s:
            return True
        if not precision or found["n"] - found["disturbed"] < max(least, ENOUGH_PAIRS):
            return False
        keys = [False, True] if with_energy else [False]
        return all(spread(placed, joules) <= SHARE_OF_PRECISION * precision for joules in keys)

    return ended


def spread(placed: Sequence[Placed], energy: bool = False) -> float:
    """Standard error of the location of one process's logarithms, from their median absolute deviation.

    The logarithms are the pairs' ratios, or the values themselves where there is only one side.
    """
    if len({block.side for block in placed}) > 1:
        logs = log_ratios(placed, energy=energy, quiet=True)
    else:
        blocks = [b for b in placed if b.part == WHOLE and not b.disturbed and not (energy and b.block.invalid)]
        logs = np.log([_value(b.block, energy) for b in blocks])
    return NORMAL_MAD * float(np.median(np.abs(logs - np.median(logs)))) / math.sqrt(len(logs)) if len(logs) else 0.0


def ratio(
    processes: Sequence[Sequence[Placed]], part: str = WHOLE, energy: bool = False, level: float = intervals.LEVEL
) -> tuple[float, float, float] | None:
    """(ratio, low, high) of method over baseline, per image; None where a process has no pair.

    Where enough processes have pairs that no other program disturbed, only these pairs count, and the processes that
    have them; else all. What others took is seen without looking at the ratio, so that this chooses no result.

    Args:
        processes: [Placed] of each process, both sides in each; part, energy: as of `log_ratios`.
    """
    quiet = [logs for placed in processes if len(logs := log_ratios(placed, part, energy, quiet=True))]
    logs = [log_ratios(placed, part, energy) for placed in processes]
    if quiet and len(quiet) >= min(intervals.FIRST_LOOK, len(processes)):
        logs = quiet
    return intervals.ratio_of_pairs(logs, level) if logs and all(map(len, logs)) else None


def half_width(interval: tuple[float, float, float] | None) -> float:
    """Half the width of a ratio's interval, relative to the ratio; infinite where there is none."""
    if interval is None or math.isnan(interval[1]):
        return math.inf
    return (interval[2] - interval[1]) / 2 / interval[0]


def add_up(
    processes: Sequence[Sequence[Placed]], apart: Collection[str] = (), energy: bool = False
) -> dict[str, Any] | None:
    """Compare the sum of the phases with the whole, in the pairs that have both.

    Args:
        apart: phases that the whole does not include.
    Returns:
        {"difference", "low", "high", "verdict": "ok" | "apart"}, relative to the whole; None without such pairs.
    """
    logs = []
    for placed in processes:
        found: dict[tuple[int, str], dict[str, float]] = {}
        for block in placed:
            if block.part not in apart and not block.disturbed and not (energy and block.block.invalid):
                found.setdefault((block.pair, block.side), {})[block.part] = _value(block.block, energy)
        n_parts = max((len(parts) for parts in found.values()), default=0)
        whole = [parts for parts in found.values() if len(parts) == n_parts > 1 and WHOLE in parts]
        if whole:
            logs.append([math.log((sum(parts.values()) - parts[WHOLE]) / parts[WHOLE]) for parts in whole])
    if not logs:
        return None
    value, low, high = (bound - 1 for bound in intervals.ratio_of_pairs(logs))
    return {"difference": value, "low": finite(low), "high": finite(high),
            "verdict": "ok" if abs(value) <= PHASES_DIFFERENCE else "apart"}  # fmt: skip
