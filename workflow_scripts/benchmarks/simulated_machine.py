"""A machine that is not quiet, simulated: what drift, other programs and processes do to blocks, on its own clock.

The code of a measurement runs on it unchanged and without waiting, as often as it takes to count how many of its
intervals hold the true ratio.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantwatt.measuring import fresh_process, pairs, summary
from quantwatt.measuring.meters import none
from quantwatt.measuring.pairs import BASELINE, METHOD
from quantwatt.measuring.processes import Result
from quantwatt.measuring.settings import Measuring

RATIO = 1.4  # the method's true time over the baseline's
BASELINE_S = 1.0
DRAWN = 64  # blocks whose noise is drawn at once
SETTINGS = {
    **{"meter": "none", "images_per_batch": 1, "prompts": 1, "block_s": None, "blocks": 16, "processes": 8},
    **{"idle_s": 0, "warmup_s": 0, "steady_s": 0, "phases_s": 0, "precision": 0, "limit_s": 80},
}


@dataclass(frozen=True)
class Noise:
    """What changes from block to block, besides white noise; logarithms of time."""

    drift: float = 0.0  # per block
    walk: float = 0.0  # standard deviation of a random walk's steps
    starts: float = 0.0  # chance that a burst, which doubles times, starts in a block
    stays: float = 0.0  # chance that it goes on in the next
    seen: bool = True  # whether the machine's counters show it


NOISES = {
    "white noise": Noise(),
    "linear drift": Noise(drift=0.004),
    "random walk": Noise(walk=0.03),
    "bursts, seen": Noise(starts=0.08, stays=0.66),
    "bursts, not seen": Noise(starts=0.08, stays=0.66, seen=False),
    "long bursts, not seen": Noise(starts=0.03, stays=0.9, seen=False),
}
BETWEEN = (0.0, 0.02, 0.05)  # standard deviations between processes, of both sides' times and of their ratio


class Machine:
    """Runs blocks of the two sides, and is the clock and the watcher of the machine that `pairs.measure` takes."""

    def __init__(self, noise: Noise, white: float, between: float, rng: np.random.Generator):
        """`white`: standard deviation of a block's logarithm; `between`: of processes', as BETWEEN."""
        self.noise, self.white, self.between, self.rng = noise, white, between, rng
        self.now, self.burst, self.level, self.drawn = 0.0, False, 0.0, iter(())
        self.fork()

    def fork(self) -> None:
        """Begin a process, with its own effects."""
        both, ratio = self.rng.normal(0, self.between, 2) if self.between else (0.0, 0.0)
        self.means = {METHOD: math.log(BASELINE_S * RATIO) + both + ratio, BASELINE: math.log(BASELINE_S) + both}

    def run(self, side: str) -> None:
        log, self.burst = next(self.drawn, None) or self._draw()
        self.now += math.exp(self.means[side] + log + (math.log(2) if self.burst else 0))

    def _draw(self):
        noise, burst, bursts = self.noise, self.burst, []
        for chance in self.rng.random(DRAWN):
            burst = bool(chance < (noise.stays if burst else noise.starts))
            bursts.append(burst)
        levels = self.level + noise.drift * np.arange(1, DRAWN + 1)
        if noise.walk:
            levels += np.cumsum(self.rng.normal(0, noise.walk, DRAWN))
        self.level = levels[-1]
        self.drawn = iter(list(zip(levels + self.rng.normal(0, self.white, DRAWN), bursts, strict=True)))
        return next(self.drawn)

    def clock(self) -> float:
        return self.now

    def start(self) -> None:
        """Begin a block."""

    def stop(self, seconds: float) -> dict[str, Any]:
        return {"disturbed": self.burst and self.noise.seen}


def measure(machine: Machine, settings: Measuring) -> list[list[pairs.Placed]]:
    """The blocks of each process of a cell: what measure.py does, without loading, warm-up and energy."""
    return [summary.placed_in(result) for result in rounds(machine, settings)]


def rounds(machine: Machine, settings: Measuring) -> list[Result]:
    """As `measure`, the processes' results, as far as summary.py reads them for ratios."""
    meter, results = none.open_meter(settings.metering), []
    while len(results) < settings.processes and not summary.is_known(results, settings):
        machine.fork()
        placed = pairs.measure(
            {side: lambda side=side: machine.run(side) for side in (METHOD, BASELINE)}, {}, meter, 0, 1,
            pairs.enough(
                settings.pairs_per_process, settings.limit_s / settings.processes, settings.precision, False,
                machine.clock,
            ),
            around=machine, clock=machine.clock,
        )  # fmt: skip
        rows = [fresh_process.block_row(block) for block in placed]
        results.append({"status": "ok", "reason": None, "meter": "none", "blocks": rows})
    return results


def settings_of(changes: Mapping[str, Any]) -> Measuring:
    return Measuring.from_settings({**SETTINGS, **changes})
