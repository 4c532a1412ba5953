"""Energy meters, by name: nvml, rapl, estimate, none; each a module of this folder, imported when asked for.

meter = open_meter("rapl")
meter.start(); work(); trace = meter.stop()
print(trace.energy_j)
"""

import contextlib
import time
from typing import Protocol

from quantwatt import registry
from quantwatt.manifest import DataError
from quantwatt.meters.trace import Trace

NAMES = ("nvml", "rapl", "estimate", "none")


class MeterUnavailable(DataError):
    """This machine cannot be read by this meter; the message is one sentence that says what to do."""


class Meter(Protocol):
    """`stop` returns the trace since `start`; `close` ends whatever the meter keeps running."""

    name: str
    reads: str | None  # the device whose energy it reads: "cpu", "cuda" or None
    estimated: bool  # True: computed from something other than a power sensor, to be marked wherever it is shown

    def start(self) -> None: ...
    def stop(self) -> Trace: ...
    def provenance(self) -> dict: ...
    def close(self) -> None: ...


def open_meter(name, settings=None, device=None):
    """The meter called `name`, ready to start.

    Args:
        name: one of NAMES.
        settings: dict; `interval_ms` of sampling, `gpu` (a UUID) for nvml, `idle_w`, `full_w` and `scope` for
            estimate.
        device: "cpu" or "cuda", what will compute; on cuda nvml reads the GPU that torch uses. None: unsaid.
    Raises:
        MeterUnavailable: there is no such meter, it cannot be read here, or it reads another device.
    """
    settings = {**(settings or {}), "device": device}
    if name not in NAMES:
        raise MeterUnavailable(f"there is no meter {name!r}; choose one of {', '.join(NAMES)}.")
    meter = registry.load("meters", name).open_meter(settings)
    if None not in (device, meter.reads) and meter.reads != device and not meter.provenance()["fake"]:
        meter.close()
        raise MeterUnavailable(f"the meter {name} reads the {meter.reads}, not the {device}: set meter to auto.")
    return meter


def metered(work, settings, device):
    """Run `work()` under the meter that the settings name; an unreadable one leaves the energy empty, with the reason.

    Args:
        settings: as for `open_meter`, with its name under "meter".
        device: "cpu" or "cuda", where the work is done.
    Returns:
        (result of work, {"seconds", "energy_j", "meter", "estimated", "reason"}, Trace of the work).
    """
    cost = {"energy_j": None, "meter": settings["meter"], "estimated": False, "reason": None}
    try:
        meter = open_meter(settings["meter"], settings, device)
    except MeterUnavailable as error:
        cost["reason"] = str(error)
        meter = open_meter("none")
    with contextlib.closing(meter):
        meter.start()
        start = time.perf_counter()
        result = work()
        seconds, trace = time.perf_counter() - start, meter.stop()
    cost["reason"] = cost["reason"] or trace.fault
    return result, {**cost, "seconds": seconds, "energy_j": trace.energy_j, "estimated": meter.estimated}, trace
