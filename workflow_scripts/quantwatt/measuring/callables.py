"""Measure latency and energy of a callable in a notebook.

from quantwatt import measure
print(measure(lambda: model(inputs)))
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quantwatt.config import experiment
from quantwatt.jobs import machine
from quantwatt.measuring import protocol
from quantwatt.measuring.instruments import choose_meter
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

    def __str__(self):
        time_text = f"{self.latency_s['median']:.4g} s{_bounds_text(self.latency_s)}"
        if self.energy_j is None:
            return f"{time_text}; no energy: {self.energy_reason}"
        how = "estimated" if self.estimated else f"meter {self.meter}"
        return f"{time_text}, {self.energy_j['value']:.4g} J{_bounds_text(self.energy_j)} ({how})"


def _bounds_text(summary):
    return "" if summary["low"] is None else f" [{summary['low']:.4g}, {summary['high']:.4g}]"


def measure(
    run: Callable[[], object], meter: str = "auto", device: str = "cpu", images_per_run: int = 1, **changes: Any
) -> Measurement:
    """Measure latency and energy of a callable in this process.

    Args:
        run: computes one batch, from data that is already on the device.
        meter: auto, nvml, rapl, estimate or none.
        device: "cpu" or "cuda", where `run` computes.
        changes: keys of config.yaml's `measuring` with other values, such as block_s, blocks, latency_s, idle_w.
    Returns:
        Measurement. It comes from one process, so its intervals do not hold the variation between processes.
    Raises:
        ConfigurationError: a key is unknown or a value is wrong.
        DataError: block_s is too short for the meter.
    """
    completed = experiment.load_config({"measuring": changes})["measuring"]
    settings = Measuring.from_settings({**completed, "meter": machine.resolve_meter(meter, device)})
    opened, reason = choose_meter(settings.metering, settings.block_s, device)
    synchronize = protocol.nothing
    if device == "cuda":
        import torch

        synchronize = torch.cuda.synchronize
    with contextlib.closing(opened):
        protocol.warm_up(
            run, settings.warmup_s, synchronize,
            temperature=lambda: opened.provenance().get("temperature_c"), steady_s=settings.steady_s,
        )  # fmt: skip
        latency = protocol.summarize_latency(
            [protocol.measure_latency(run, settings.latency_s, synchronize=synchronize)], images_per_run
        )
        if opened.name == "none":
            return Measurement(latency, None, reason or opened.stop().fault, "none", False, [])
        blocks = protocol.measure_energy(run, opened, settings.block_s, settings.blocks, images_per_run, synchronize)
    energy, reason = protocol.summarize_energy([blocks], settings.blocks)
    return Measurement(latency, energy, reason, opened.name, opened.estimated, blocks)
