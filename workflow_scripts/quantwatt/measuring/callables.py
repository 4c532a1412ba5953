"""Measure latency and energy of a callable, or of two in pairs, in a notebook.

from quantwatt import measure
print(measure(lambda: quantized(inputs), lambda: model(inputs)))
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quantwatt.config import experiment
from quantwatt.jobs import machine
from quantwatt.measuring import cpus, instruments, pairs, protocol
from quantwatt.measuring.meters import neighbours
from quantwatt.measuring.settings import Measuring


@dataclass(frozen=True)
class Measurement:
    """Latency and energy of one callable, per image (of `images_per_run`), with 95 % intervals."""

    latency_s: dict  # of `summarize_latency`
    energy_j: dict | None  # of `summarize_energy`; None where there is no energy
    energy_reason: str | None  # why there is no energy
    meter: str
    estimated: bool
    blocks: list  # of Block, with their traces
    latency_ratio: tuple | None  # (ratio to the baseline, low, high); None without a baseline
    energy_ratio: tuple | None  # likewise; None also where there is no energy
    pairs: dict  # {"n", "disturbed"}: pairs of blocks, and those in which other programs took CPU time

    def __str__(self):
        time_text = f"{self.latency_s['median']:.4g} s{_bounds_text(self.latency_s)}{_ratio_text(self.latency_ratio)}"
        if self.energy_j is None:
            return f"{time_text}; no energy: {self.energy_reason}"
        how = "estimated" if self.estimated else f"meter {self.meter}"
        joules = f"{self.energy_j['value']:.4g} J{_bounds_text(self.energy_j)}{_ratio_text(self.energy_ratio)}"
        return f"{time_text}, {joules} ({how})"


def _bounds_text(summary):
    return "" if summary["low"] is None else f" [{summary['low']:.4g}, {summary['high']:.4g}]"


def _ratio_text(ratio):
    return "" if ratio is None else " = {:.3g} [{:.3g}, {:.3g}] x the baseline".format(*ratio)


def measure(
    run: Callable[[], object],
    baseline: Callable[[], object] | None = None,
    meter: str = "auto",
    device: str = "cpu",
    images_per_run: int = 1,
    **changes: Any,
) -> Measurement:
    """Measure latency and energy of a callable in this process, in turns with a baseline if there is one.

    Args:
        run, baseline: compute one batch, from data that is already on the device.
        meter: auto, nvml, amdsmi, rapl, estimate or none.
        device: "cpu" or "cuda", where they compute.
        changes: keys of config.yaml's `measuring` with other values, such as precision, limit_s, block_s, idle_w.
    Returns:
        Measurement. It comes from one process, so its intervals do not hold the variation between processes.
    Raises:
        ConfigurationError: a key is unknown or a value is wrong.
        DataError: block_s is too short for the meter.
    """
    completed = experiment.load_config({"measuring": changes})["measuring"]
    settings = Measuring.from_settings({**completed, "meter": machine.resolve_meter(meter, device)})
    opened, reason = instruments.choose_meter(settings.metering, settings.block_s, device)
    synchronize = instruments.synchronize_of(device)
    sides = {pairs.METHOD: run} | ({} if baseline is None else {pairs.BASELINE: baseline})
    with contextlib.closing(opened):
        protocol.warm_up(
            protocol.Cycle(sides.values()), settings.warmup_s, synchronize,
            temperature=lambda: opened.provenance().get("temperature_c"), steady_s=settings.steady_s,
            least=2 * len(sides),
        )  # fmt: skip
        has_energy = opened.name != "none"
        placed = pairs.measure(
            sides, {}, opened, opened.least_s if settings.block_s is None else settings.block_s, images_per_run,
            pairs.enough(max(settings.blocks, 2), settings.limit_s, settings.precision, has_energy),
            synchronize=synchronize, around=neighbours.Around(cpus.count().machine),
        )  # fmt: skip
    blocks = [each.block for each in placed if each.side == pairs.METHOD]
    latency = protocol.summarize_latency(
        [[stop - start for block in blocks for start, stop in block.runs]], images_per_run
    )
    energy, why = protocol.summarize_energy([blocks]) if has_energy else (None, reason or blocks[-1].reason)
    return Measurement(
        latency, energy, why, opened.name, opened.estimated, blocks,
        latency_ratio=pairs.ratio([placed]), energy_ratio=pairs.ratio([placed], energy=True) if energy else None,
        pairs=pairs.counts(placed),
    )  # fmt: skip
