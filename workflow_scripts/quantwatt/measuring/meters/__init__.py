"""Energy meters, by name: nvml, rapl, estimate, none; each a module of this folder, imported when asked for.

meter = open_meter(Metering("rapl"))
meter.start(); work(); trace = meter.stop()
print(trace.energy_j)
"""

import contextlib
import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.measuring.meters.trace import Trace

NAMES = ("nvml", "rapl", "estimate", "none")


class MeterUnavailable(DataError):
    """This machine cannot be read by this meter; the message is one sentence that says what to do."""


@dataclasses.dataclass(frozen=True)
class Metering:
    """Which meter reads the energy, and how; each meter reads its own of these."""

    meter: str = "none"  # one of NAMES
    interval_ms: float | None = None  # between two samples of power; None: the meter's own, the least it can do
    gpus: str = "first"  # nvml: the "first" of those that the job may use, where the model runs, or "all", summed
    gpu: str | None = None  # nvml: a UUID, in their place
    domains: str = "all"  # rapl: "package" or "dram" alone, or both
    idle_w: float | None = None  # estimate: watts of the machine with no CPU busy ...
    full_w: float | None = None  # ... and with every one
    scope: str = "process"  # estimate: whose CPU time counts, this "process" and its children's, or the "machine"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Of config.yaml's `measuring`, with "meter"; the protocol's keys are left to `settings.Measuring`."""
        return cls(**{field.name: settings[field.name] for field in dataclasses.fields(cls) if field.name in settings})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """As `from_settings`, of a JSON object."""
        return cls.from_settings(json.loads(text))


class Meter(ABC):
    """Reads energy from `start` to `stop`. A meter's module has `open_meter(settings: Metering, device) -> Meter`."""

    name: str  # of its module
    reads: str | None  # the device whose energy it reads: "cpu", "cuda" or None
    estimated: bool = False  # computed from something other than a power sensor, to be marked wherever it is shown
    whole: bool = True  # it reads what all programs of the device take together

    @abstractmethod
    def start(self) -> None:
        """Begin a window."""

    @abstractmethod
    def stop(self) -> Trace:
        """The trace since `start`; what went wrong is its fault."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What is read and how: "meter", "source", "interval_ms", "fake", and what the device says of itself."""

    @abstractmethod
    def close(self) -> None:
        """End whatever the meter keeps running."""

    def processes(self) -> list[int] | None:
        """Numbers of the processes that compute on the device, where it tells them; None where not."""
        return None


def open_meter(settings: Metering, device: str | None = None) -> "Meter":
    """The meter that the settings name, ready to start.

    Args:
        device: "cpu" or "cuda", what will compute; on cuda nvml reads the GPU that torch uses. None: unsaid.
    Raises:
        MeterUnavailable: there is no such meter, it cannot be read here, or it reads another device.
    """
    name = settings.meter
    if name not in NAMES:
        raise MeterUnavailable(f"there is no meter {name!r}; choose one of {', '.join(NAMES)}.")
    meter = registry.load("meters", name).open_meter(settings, device)
    if None not in (device, meter.reads) and meter.reads != device and not meter.provenance()["fake"]:
        meter.close()
        raise MeterUnavailable(f"the meter {name} reads the {meter.reads}, not the {device}: set meter to auto.")
    return meter


def secondary_meters(meter: "Meter", settings: Metering, device: str | None) -> "dict[str, Meter]":
    """{name: meter} of what works beside a GPU and has counters that this user may read: "cpu package" and "dram".

    Args:
        meter: the GPU's; there are none beside a meter of the processor.
        settings, device: as for `open_meter`; where the processor computes ("cpu"), it is none.
    """
    found = {}
    if meter.reads == "cuda" and device != "cpu":
        for name, domains in (("cpu package", "package"), ("dram", "dram")):
            with contextlib.suppress(MeterUnavailable):
                found[name] = open_meter(dataclasses.replace(settings, meter="rapl", domains=domains))
    return found


class CompositeMeter(Meter):
    """A meter and secondary ones as one meter: traces tell in `beside` what the secondary ones read meanwhile."""

    def __init__(self, primary: Meter, secondary_meters: Mapping[str, Meter]):
        self.name, self.reads, self.estimated = primary.name, primary.reads, primary.estimated
        self._primary, self._secondary = primary, secondary_meters

    def start(self):
        for meter in (*self._secondary.values(), self._primary):
            meter.start()

    def stop(self):
        trace = self._primary.stop()
        others = {name: meter.stop() for name, meter in self._secondary.items()}
        edges = trace.timestamps_s[[0, -1]] if len(trace.timestamps_s) else None
        beside = {name: None if edges is None else other.energy_between(*edges) for name, other in others.items()}
        return dataclasses.replace(trace, beside=beside)

    def provenance(self):
        beside = {name: meter.provenance() for name, meter in self._secondary.items()}
        return {**self._primary.provenance(), "beside": beside}

    def processes(self):
        return self._primary.processes()

    def close(self):
        for meter in (self._primary, *self._secondary.values()):
            meter.close()


def metered(work, settings: Metering, device: str):
    """Run `work()` under the meter that the settings name.

    The energy is empty, with the reason, where the meter cannot be read, and where it counts a whole package or board
    on which other programs computed meanwhile; the estimate of the process alone tells joules beside others.

    Args:
        work: function without arguments.
        device: "cpu" or "cuda", where the work is done.
    Returns:
        (result of work, {"seconds", "energy_j", "meter", "estimated", "reason", "others"}, Trace of the work);
        "others" is what other programs did meanwhile, of neighbours.Others.
    """
    from quantwatt.measuring.meters import neighbours

    cost: dict[str, Any] = {"energy_j": None, "meter": settings.meter, "estimated": False, "reason": None}
    try:
        meter = open_meter(settings, device)
    except MeterUnavailable as error:
        cost["reason"] = str(error)
        meter = open_meter(Metering())
    with contextlib.closing(meter):
        watch = neighbours.Watch(meter)
        watch.start()
        meter.start()
        start = time.perf_counter()
        result = work()
        seconds, trace, others = time.perf_counter() - start, meter.stop(), watch.stop()
    if meter.whole and trace.energy_j is not None and (fault := others.fault(meter.reads)):
        trace = dataclasses.replace(trace, energy_j=None, fault=fault)
    cost |= {"reason": cost["reason"] or trace.fault, "others": others.record()}
    return result, {**cost, "seconds": seconds, "energy_j": trace.energy_j, "estimated": meter.estimated}, trace
