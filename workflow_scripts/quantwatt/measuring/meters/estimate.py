"""Estimate CPU energy from busy time: idle_w * share + (full_w - idle_w) * busy CPUs / CPUs (Linux).

CPUs are all CPUs of the machine, because idle_w and full_w are its power with none and with all of them busy. A process
that may use only a share of the CPUs, by its affinity or its container's quota, is charged this share of the idle
power: the shares of jobs that divide a machine add up to the machine's idle power. Concurrent jobs without such limits
are each charged the whole idle power. The CPU time of children counts after they were waited for.

The meter reads no power sensor: every value is marked as estimated. It does not see frequency, vector units or memory
traffic, so it ranks methods by CPU time only.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantwatt.measuring import cpus
from quantwatt.measuring.cpus import child_ticks, machine_ticks
from quantwatt.measuring.meters import Metering, MeterUnavailable
from quantwatt.measuring.meters.sampler import SampledMeter, Sampler

INTERVAL_MS = 100  # shortest interval: each sample costs CPU time
SCHEDULED = 2  # with a process's number, the id of its CPU clock, as clock_getcpuclockid(3) makes it
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
        """Add the wattages, scope, the machine's "n_cpus" and "n_cpus_source", "usable_cpus" and their "cpu_limit"."""
        counted = self._found
        limits = {"n_cpus_source": counted.source, "usable_cpus": counted.usable, "cpu_limit": counted.limit}
        names = ("idle_w", "full_w", "scope", "n_cpus", "idle_share")
        return {**super().provenance(), **{name: self._arguments[name] for name in names}, **limits}


def open_meter(
    settings: Metering,
    device: str | None = None,
    make_sampler: Callable[..., Any] = Sampler,
    proc: str = "/proc",
    cgroups: str = "/sys/fs/cgroup",
) -> EstimateMeter:
    """Open a meter that estimates the CPU's energy.

    Args:
        settings: Metering; its idle_w, full_w, scope and interval_ms are read.
        device: not used; the CPU time is read on every device.
        proc, cgroups: paths of the kernel's file systems, for tests.
    Raises:
        MeterUnavailable: a wattage is missing or impossible, or /proc does not exist.
    """
    idle_w, full_w = settings.idle_w, settings.full_w
    if idle_w is None or full_w is None:
        raise MeterUnavailable(
            "the meter `estimate` needs the machine's power at rest and at full load: "
            "set idle_w and full_w (watts) next to it in config.yaml."
        )
    if not 0 < idle_w < full_w:
        raise MeterUnavailable(f"idle_w = {idle_w} and full_w = {full_w} cannot be: set 0 < idle_w < full_w (watts).")
    scope = settings.scope
    if scope not in SCOPES:
        raise MeterUnavailable(f"the estimate's scope {scope!r} is unknown: choose {' or '.join(SCOPES)}.")
    counted = cpus.count(proc, cgroups)
    path = f"{proc}/stat" if scope == "machine" else f"{proc}/{os.getpid()}/stat"
    arguments = {
        "path": path,
        "scope": scope,
        "idle_w": idle_w,
        "full_w": full_w,
        "n_cpus": counted.machine,
        "idle_share": 1.0 if scope == "machine" else counted.usable / counted.machine,
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
        counted,
    )


def reader(
    path: str, scope: str, idle_w: float, full_w: float, n_cpus: int, idle_share: float = 1.0
) -> Callable[[], tuple[float, float, float]]:
    """Return a function that returns (NaN, joules since some fixed time, NaN): no power reading and no sensor time.

    A process's own CPU time is read from its CPU clock, to the microsecond; the machine's, and that of children that
    were waited for, in ticks of 10 ms.
    """
    ticks_per_s = os.sysconf("SC_CLK_TCK")

    def read():
        stat = Path(path).read_text()
        if scope == "machine":
            busy_s = machine_ticks(stat) / ticks_per_s
        else:
            clock = ~int(stat.split(maxsplit=1)[0]) << 3 | SCHEDULED
            busy_s = time.clock_gettime(clock) + child_ticks(stat) / ticks_per_s
        idle_j = idle_share * idle_w * time.perf_counter()
        return math.nan, idle_j + (full_w - idle_w) * busy_s / n_cpus, math.nan

    return read
