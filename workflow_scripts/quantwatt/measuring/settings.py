"""Settings of the measure stage: config.yaml's completed `measuring`, with the resolved meter."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from quantwatt import intervals
from quantwatt.measuring.meters import Metering

METERING = ("meter", "interval_ms", "gpus", "idle_w", "full_w")  # the keys of `measuring` that a meter reads


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """The protocol of one cell. Times are in seconds."""

    metering: Metering
    precision: float  # half-width of the ratios' intervals at which measuring stops; 0: it never stops early
    limit_s: float  # of all blocks together; the least number of blocks is measured even if it takes longer
    processes: int  # largest number of fresh processes, each of which holds the method and the baseline
    block_s: float | None  # least duration of a block; None: the shortest whose energy the meter resolves
    blocks: int  # least number of blocks of the method, and as many of the baseline, over all processes
    idle_s: float  # idle time, before the first process's warm-up and after a later one's blocks
    warmup_s: float  # of each process
    steady_s: float  # window of the temperature's slope; 0: do not wait for a steady temperature
    phases_s: float  # duration of each phase's blocks, over all processes; 0: do not measure phases
    images_per_batch: int
    prompts: int  # batches of prompts that every block goes through

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], batch_size: int = 1) -> Self:
        """Read config.yaml's completed `measuring`, with "meter"; keys for other stages are ignored.

        Args:
            batch_size: of the sampling; used where `images_per_batch` is null.
        """
        chosen = {field.name: settings[field.name] for field in fields(cls) if field.name != "metering"}
        chosen["images_per_batch"] = chosen["images_per_batch"] or batch_size
        return cls(metering=Metering.from_settings(settings), **chosen)

    def to_settings(self) -> dict[str, Any]:
        """Return the inverse of `from_settings`, for measurement.json and for a fresh process."""
        settings = asdict(self)
        metering = settings.pop("metering")
        return {**settings, **{name: metering[name] for name in METERING}}

    @property
    def least_processes(self) -> int:
        """Processes after which measuring may stop."""
        return min(self.processes, intervals.FIRST_LOOK)

    @property
    def pairs_per_process(self) -> int:
        """Least number of pairs of blocks of each process."""
        return max(2, math.ceil(self.blocks / self.least_processes))

    @property
    def level(self) -> float:
        """Level of each interval, so that 95 % hold although measuring stops at a width."""
        return intervals.looks_level(self.processes) if self.precision else intervals.LEVEL
