"""What the measure stage is told: config.yaml's `measuring`, completed, with the meter that was resolved."""

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
    processes: int  # fresh ones of the method, and as many of the baseline
    block_s: float  # of one energy block, at least
    blocks: int
    idle_s: float  # at rest, before the first process's blocks and after the last's
    warmup_s: float  # of each process
    steady_s: float  # window over which a temperature's slope is taken; 0: none is waited for
    latency_s: float  # of runs without power sampling
    phases_s: float  # of each phase looped alone; 0: none
    images_per_batch: int
    prompts: int  # batches of prompts that the timed loops go through

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], batch_size: int = 1) -> Self:
        """Of config.yaml's completed `measuring`, with "meter"; keys that measuring one cell does not read are left.

        Args:
            batch_size: of the sampling, which `images_per_batch: null` asks for.
        """
        chosen = {field.name: settings[field.name] for field in fields(cls) if field.name != "metering"}
        chosen["images_per_batch"] = chosen["images_per_batch"] or batch_size
        return cls(metering=Metering.from_settings(settings), **chosen)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """As `from_settings`, of a JSON object."""
        return cls.from_settings(json.loads(text))

    def to_settings(self) -> dict[str, Any]:
        """What `from_settings` makes this of, as it is kept in measurement.json and sent to a fresh process."""
        found = asdict(self)
        metering = found.pop("metering")
        return {**found, **{name: metering[name] for name in METERING}}

    @property
    def blocks_per_process(self) -> int:
        """Energy blocks of each process, rounded up."""
        return math.ceil(self.blocks / self.processes)

    @property
    def latency_s_per_process(self) -> float:
        """Seconds of latency runs in each process."""
        return self.latency_s / self.processes
