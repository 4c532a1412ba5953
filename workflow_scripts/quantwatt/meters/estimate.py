"""CPU energy estimated from busy time: idle_w + (full_w - idle_w) * busy CPUs / CPUs. Linux.

It reads no power sensor: every figure from it is marked estimated. It knows nothing of frequency, vector
units or memory traffic, so it ranks methods by CPU time alone.
"""

import math
import os
import time

from quantwatt.meters import MeterUnavailable
from quantwatt.meters.sampler import SampledMeter, Sampler

INTERVAL_MS = 100  # or more: CPU time is counted in ticks of 10 ms
SCOPES = ("process", "machine")


class EstimateMeter(SampledMeter):
    name = "estimate"
    reads = "cpu"
    estimated = True

    def __init__(self, sampler, source, arguments):
        super().__init__(sampler, source)
        self._arguments = arguments

    def provenance(self):
        names = ("idle_w", "full_w", "scope", "n_cpus")
        return {**super().provenance(), **{name: self._arguments[name] for name in names}}


def open_meter(settings, make_sampler=Sampler, proc="/proc"):
    """A meter of the CPU.

    Args:
        settings: `idle_w` and `full_w`, watts of the machine with no and with every CPU busy; `scope`:
            "process" counts the CPU time of this process and its waited-for children, "machine" everyone's.
    Raises:
        MeterUnavailable: a wattage is missing or impossible, or /proc is not there.
    """
    idle_w, full_w = settings.get("idle_w"), settings.get("full_w")
    if idle_w is None or full_w is None:
        raise MeterUnavailable(
            "the meter `estimate` needs the machine's power at rest and at full load: "
            "set idle_w and full_w (watts) beside it in config.yaml."
        )
    if not 0 < idle_w < full_w:
        raise MeterUnavailable(f"idle_w = {idle_w} and full_w = {full_w} cannot be: set 0 < idle_w < full_w (watts).")
    scope = settings.get("scope", "process")
    if scope not in SCOPES:
        raise MeterUnavailable(f"the estimate's scope {scope!r} is unknown: choose {' or '.join(SCOPES)}.")
    path = f"{proc}/stat" if scope == "machine" else f"{proc}/{os.getpid()}/stat"
    arguments = {
        "path": path,
        "scope": scope,
        "idle_w": idle_w,
        "full_w": full_w,
        "n_cpus": os.cpu_count(),
    }
    try:
        reader(**arguments)()
    except OSError as error:
        raise MeterUnavailable(
            f"{path} cannot be read, so CPU time is unknown: choose the meter rapl or none."
        ) from error
    source = f"CPU time of the {scope} between {idle_w:g} W and {full_w:g} W"
    return EstimateMeter(
        make_sampler("estimate", arguments, max(INTERVAL_MS, settings.get("interval_ms", 0)) / 1000),
        source,
        arguments,
    )


def reader(path, scope, idle_w, full_w, n_cpus):
    """A function that returns (NaN, joules since some fixed time, NaN): no power of its own, no clock of its own."""
    busy_ticks = machine_ticks if scope == "machine" else process_ticks
    ticks_per_s = os.sysconf("SC_CLK_TCK")

    def read():
        with open(path) as file:
            busy_s = busy_ticks(file.read()) / ticks_per_s
        return math.nan, idle_w * time.perf_counter() + (full_w - idle_w) * busy_s / n_cpus, math.nan

    return read


def machine_ticks(stat):
    """Busy ticks of all CPUs in the text of /proc/stat: user, nice, system, irq, softirq (see proc(5))."""
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in stat.split(maxsplit=8)[1:8])
    return user + nice + system + irq + softirq


def process_ticks(stat):
    """Busy ticks in the text of /proc/PID/stat: fields 14 to 17, of the process and waited-for children."""
    return sum(int(field) for field in stat.rpartition(")")[2].split()[11:15])
