"""Settings of the measure stage: config.yaml's completed `measuring`, with the resolved meter."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from quantwatt.measuring.meters import Metering

METERING = ("meter", "interval_ms", "gpus", "idle_w", "full_w")  # the keys of `measuring` that a meter reads


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """The protocol of one cell. Times are in seconds; `blocks` and `latency_s` are over all processes."""

    metering: Metering
    processes: int  # fresh processes of the method, and as many of the baseline
    block_s: float  # least duration of one energy block
    blocks: int
    idle_s: float  # idle time, before the first process's warm-up and after the last process's phases
    warmup_s: float  # of each process
    steady_s: float  # window of the temperature's slope; 0: do not wait for a steady temperature
    latency_s: float  # duration of the runs without power sampling
    phases_s: float  # duration of each phase's loop; 0: do not measure phases
    images_per_batch: int
    prompts: int  # batches of prompts that the timed loops go through

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], batch_size: int = 1) -> Self:
        """Read config.yaml's completed `measuring`, with "meter"; keys for other stages are ignored.

        Args:
            batch_size: of the sampling; used where `images_per_batch` is null.
        """
        chosen = {field.name: settings[field.name] for field in fields(cls) if field.name != "metering"}
        chosen["images_per_batch"] = chosen["images_per_batch"] or batch_size
        return cls(metering=Metering.from_settings(settings), **chosen)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the settings from a JSON object, as `from_settings` does."""
        return cls.from_settings(json.loads(text))

    def to_settings(self) -> dict[str, Any]:
        """Return the inverse of `from_settings`, for measurement.json and for a fresh process."""
        settings = asdict(self)
        metering = settings.pop("metering")
        return {**settings, **{name: metering[name] for name in METERING}}

    @property
    def blocks_per_process(self) -> int:
        """Energy blocks of each process, rounded up."""
        return math.ceil(self.blocks / self.processes)

    @property
    def latency_s_per_process(self) -> float:
        """Seconds of latency runs in each process."""
        return self.latency_s / self.processes
