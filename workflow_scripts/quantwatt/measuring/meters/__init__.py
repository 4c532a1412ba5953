"""Energy meters by name: nvml, amdsmi, rapl, estimate, none. Each is a module of this folder, imported on demand.

meter = open_meter("rapl")
meter.start(); work(); trace = meter.stop()
print(trace.energy_j)
"""

import contextlib
import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.measuring.meters.trace import Trace

NAMES = ("nvml", "amdsmi", "rapl", "estimate", "none")


class MeterUnavailable(DataError):
    """The meter cannot read this machine; the message is one sentence that says what to do."""


@dataclasses.dataclass(frozen=True)
class Metering:
    """Which meter reads the energy, and its settings; each meter reads only the fields that are named after it."""

    meter: str = "none"  # one of NAMES
    interval_ms: float | None = None  # time between two samples of power; None: the meter's default, its shortest
    gpus: str = (
        "first"  # nvml, amdsmi: "first", the GPU where the model runs; or "all" GPUs that the job may use, summed
    )
    gpu: str | None = None  # nvml, amdsmi: UUID of the GPU to read; overrides `gpus`
    domains: str = "all"  # rapl: "package", "dram", or "all" for both
    idle_w: float | None = None  # estimate: power of the machine in watts with all CPUs idle
    full_w: float | None = None  # estimate: power of the machine in watts with all CPUs busy
    scope: str = "process"  # estimate: count CPU time of this "process" and its children, or of the whole "machine"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Read config.yaml's `measuring`, with "meter"; `settings.Measuring` reads the keys of the protocol."""
        return cls(**{field.name: settings[field.name] for field in dataclasses.fields(cls) if field.name in settings})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the settings from a JSON object, as `from_settings` does."""
        return cls.from_settings(json.loads(text))


class Meter(ABC):
    """Reads energy from `start` to `stop`. A meter's module has `open_meter(settings: Metering, device) -> Meter`."""

    name: str  # name of the meter's module
    reads: str | None  # the device whose energy it reads: "cpu", "cuda" or None
    estimated: bool = False  # whether energy is computed without a power sensor; marked wherever it is shown
    least_s: float = 0.1  # seconds of the shortest block whose energy it resolves to a few percent
    whole: bool = True  # whether it reads the energy of all programs on the device, not only of this process

    @abstractmethod
    def start(self) -> None:
        """Begin a window."""

    @abstractmethod
    def stop(self) -> Trace:
        """Return the trace since `start`; its `fault` says what went wrong."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Describe the reading: "meter", "source", "interval_ms", "fake", and what the device reports of itself."""

    @abstractmethod
    def close(self) -> None:
        """Stop all processes of the meter."""

    def processes(self) -> list[int] | None:
        """Return the ids of the processes that compute on the device; None where the device does not list them."""
        return None


def open_meter(meter: str | Metering, settings: Mapping[str, Any] | None = None, device: str | None = None) -> "Meter":
    """A meter, ready to start.

    Args:
        meter: one of NAMES, or Metering.
        settings: with a name, what that meter reads of Metering's fields, such as {"idle_w": 10, "full_w": 65}.
        device: "cpu" or "cuda", what will compute; on cuda nvml reads the GPU that torch uses. None: unsaid.
    Raises:
        MeterUnavailable: there is no such meter, it cannot be read here, or it reads another device.
    """
    if isinstance(meter, str):
        meter = Metering.from_settings({**(settings or {}), "meter": meter})
    name = meter.meter
    if name not in NAMES:
        raise MeterUnavailable(f"there is no meter {name!r}; choose one of {', '.join(NAMES)}.")
    opened = registry.load("meters", name).open_meter(meter, device)
    if None not in (device, opened.reads) and opened.reads != device and not opened.provenance()["fake"]:
        opened.close()
        raise MeterUnavailable(f"the meter {name} reads the {opened.reads}, not the {device}: set meter to auto.")
    return opened


def secondary_meters(meter: "Meter", settings: Metering, device: str | None) -> "dict[str, Meter]":
    """Open the secondary meters {"cpu package": meter, "dram": meter} that this user may read, next to a GPU's meter.

    Args:
        meter: the primary meter; a meter of the CPU has no secondary meters.
        settings, device: as for `open_meter`; there are no secondary meters where the CPU computes ("cpu").
    """
    meters = {}
    if meter.reads == "cuda" and device != "cpu":
        for name, domains in (("cpu package", "package"), ("dram", "dram")):
            with contextlib.suppress(MeterUnavailable):
                meters[name] = open_meter(dataclasses.replace(settings, meter="rapl", domains=domains))
    return meters


class CompositeMeter(Meter):
    """A primary meter and secondary meters as one; `Trace.beside` holds the joules of the secondary meters."""

    def __init__(self, primary: Meter, secondary_meters: Mapping[str, Meter]):
        self.name, self.reads, self.estimated = primary.name, primary.reads, primary.estimated
        self._primary, self._secondary, self.least_s = primary, secondary_meters, primary.least_s

    def start(self) -> None:
        for meter in (*self._secondary.values(), self._primary):
            meter.start()

    def stop(self) -> Trace:
        trace = self._primary.stop()
        others = {name: meter.stop() for name, meter in self._secondary.items()}
        edges = trace.timestamps_s[[0, -1]] if len(trace.timestamps_s) else None
        joules = {name: None if edges is None else other.energy_between(*edges) for name, other in others.items()}
        return dataclasses.replace(trace, beside=joules)

    def provenance(self) -> dict[str, Any]:
        beside = {name: meter.provenance() for name, meter in self._secondary.items()}
        return {**self._primary.provenance(), "beside": beside}

    def processes(self) -> list[int] | None:
        return self._primary.processes()

    def close(self) -> None:
        for meter in (self._primary, *self._secondary.values()):
            meter.close()


def metered(work: Callable[[], Any], settings: Metering, device: str) -> tuple[Any, dict[str, Any], Trace]:
    """Run `work()` under the meter that the settings name.

    The energy is empty, with a reason, where the meter cannot be read. It is also empty where the meter counts a whole
    package or board and other programs computed there during the work. A meter with the scope "process" gives the
    energy despite other programs.

    Args:
        work: function without arguments.
        device: "cpu" or "cuda", where the work is done.
    Returns:
        (result of work, {"seconds", "energy_j", "meter", "estimated", "reason", "others"}, Trace of the work);
        "others" is the activity of other programs during the work, of neighbours.Others.
    """
    from quantwatt.measuring.meters import neighbours

    cost: dict[str, Any] = {"energy_j": None, "meter": settings.meter, "estimated": False, "reason": None}
    try:
        meter = open_meter(settings, device=device)
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
