"""CPU energy estimated from busy time: idle_w * share + (full_w - idle_w) * busy CPUs / CPUs. Linux.

CPUs are those of the machine, as idle_w and full_w are its power with none and with all of them busy. A process that
may use some of them only, by its affinity or its container's quota, is charged that share of the idle power: jobs that
divide a machine so add up to it. Jobs that run at once without such limits are each charged all idle power. CPU time of
children counts once they were waited for.

It reads no power sensor: every figure from it is marked estimated. It knows nothing of frequency, vector
units or memory traffic, so it ranks methods by CPU time alone.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantwatt.measuring import cpus
from quantwatt.measuring.cpus import machine_ticks, process_ticks
from quantwatt.measuring.meters import Metering, MeterUnavailable
from quantwatt.measuring.meters.sampler import SampledMeter, Sampler

INTERVAL_MS = 100  # or more: CPU time is counted in ticks of 10 ms
SCOPES = ("process", "machine")


class EstimateMeter(SampledMeter):
    name = "estimate"
    reads = "cpu"
    estimated = True

    def __init__(self, sampler: Any, source: str, arguments: Mapping[str, Any], found: cpus.Cpus):
        super().__init__(sampler, source)
        self._arguments, self._found = arguments, found
        self.whole = arguments["scope"] == "machine"

    def provenance(self) -> dict[str, Any]:
        """Beside the wattages: "n_cpus" of the machine and what counted them, those "usable_cpus" by a "cpu_limit"."""
        cpus_found = self._found
        found = {"n_cpus_source": cpus_found.source, "usable_cpus": cpus_found.usable, "cpu_limit": cpus_found.limit}
        names = ("idle_w", "full_w", "scope", "n_cpus", "idle_share")
        return {**super().provenance(), **{name: self._arguments[name] for name in names}, **found}


def open_meter(
    settings: Metering,
    device: str | None = None,
    make_sampler: Callable[..., Any] = Sampler,
    proc: str = "/proc",
    cgroups: str = "/sys/fs/cgroup",
) -> EstimateMeter:
    """A meter of the CPU.

    Args:
        settings: Metering, of which it reads idle_w, full_w, scope and interval_ms.
        device: it reads CPUs whatever computes.
        proc, cgroups: the kernel's trees, for tests.
    Raises:
        MeterUnavailable: a wattage is missing or impossible, or /proc is not there.
    """
    idle_w, full_w = settings.idle_w, settings.full_w
    if idle_w is None or full_w is None:
        raise MeterUnavailable(
            "the meter `estimate` needs the machine's power at rest and at full load: "
            "set idle_w and full_w (watts) beside it in config.yaml."
        )
    if not 0 < idle_w < full_w:
        raise MeterUnavailable(f"idle_w = {idle_w} and full_w = {full_w} cannot be: set 0 < idle_w < full_w (watts).")
    scope = settings.scope
    if scope not in SCOPES:
        raise MeterUnavailable(f"the estimate's scope {scope!r} is unknown: choose {' or '.join(SCOPES)}.")
    found = cpus.count(proc, cgroups)
    path = f"{proc}/stat" if scope == "machine" else f"{proc}/{os.getpid()}/stat"
    arguments = {
        "path": path,
        "scope": scope,
        "idle_w": idle_w,
        "full_w": full_w,
        "n_cpus": found.machine,
        "idle_share": 1.0 if scope == "machine" else found.usable / found.machine,
    }
    try:
        reader(**arguments)()
    except OSError as error:
        raise MeterUnavailable(
            f"{path} cannot be read, so CPU time is unknown: choose the meter rapl or none."
        ) from error
    source = f"CPU time of the {scope} between {idle_w:g} W and {full_w:g} W"
    return EstimateMeter(
        make_sampler("estimate", arguments, max(INTERVAL_MS, settings.interval_ms or 0) / 1000),
        source,
        arguments,
        found,
    )


def reader(
    path: str, scope: str, idle_w: float, full_w: float, n_cpus: int, idle_share: float = 1.0
) -> Callable[[], tuple[float, float, float]]:
    """A function that returns (NaN, joules since some fixed time, NaN): no power of its own, no clock of its own."""
    busy_ticks = machine_ticks if scope == "machine" else process_ticks
    ticks_per_s = os.sysconf("SC_CLK_TCK")

    def read():
        busy_s = busy_ticks(Path(path).read_text()) / ticks_per_s
        idle_j = idle_share * idle_w * time.perf_counter()
        return math.nan, idle_j + (full_w - idle_w) * busy_s / n_cpus, math.nan

    return read
