"""Instruments of a measurement: the meter, threads, device synchronization, peak memory and the device's name."""

import contextlib
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import cpu_name
from quantwatt.measuring import cpus, protocol
from quantwatt.measuring.meters import CompositeMeter, Meter, Metering, MeterUnavailable, open_meter, secondary_meters


def choose_meter(settings: Metering, block_s: float | None, device: str) -> tuple[Meter, str | None]:
    """Return (meter, why there is no energy or None); where the meter cannot be read, fall back to the meter `none`.

    Args:
        block_s: seconds of the shortest block that will be measured; None: the meter's `least_s`.
    Raises:
        DataError: the blocks are too short for the meter.
    """
    try:
        meter = open_meter(settings, device=device)
    except MeterUnavailable as unavailable:
        print(f"no energy: {unavailable}", file=sys.stderr)
        return open_meter(Metering()), str(unavailable)
    if meter.reads == "cuda" and block_s is not None and block_s < meter.least_s:
        meter.close()
        raise DataError(f"measuring.block_s is {block_s}, and a GPU's readings need {meter.least_s:g} s or more.")
    secondary = secondary_meters(meter, settings, device)
    return (CompositeMeter(meter, secondary) if secondary else meter), None


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(min(threads, max(1, int(cpus.count().usable))))  # a quota would throttle more


def synchronize_of(device: str) -> Callable[[], object]:
    if device == "cpu":
        return protocol.nothing
    import torch

    return torch.cuda.synchronize


def memory_of(device: str, pipeline: Any) -> Callable[[], dict[str, Any]]:
    """Return a function that returns the values of `peak_memory_of`, and those of the pipeline's tensors.

    These are "model_mb", and "components_mb" of each network; tensors that networks share count in each of them.
    """
    from quantwatt.measuring.module_memory import module_memory_bytes

    peak = peak_memory_of(device)
    return lambda: {
        **peak(),
        "model_mb": module_memory_bytes(pipeline.modules().values()) / 1e6,
        "components_mb": {name: module_memory_bytes([part]) / 1e6 for name, part in pipeline.modules().items()},
    }


def peak_memory_of(device: str) -> Callable[[], dict[str, Any]]:
    """Return a function that returns {"peak_mb", "reserved_mb", "allocated_mb", "source"} of this process up to now.

    On the CPU, "reserved_mb" and "allocated_mb" are None.
    """
    if device == "cpu":
        return lambda: {
            "peak_mb": peak_resident_bytes() / 1e6,
            "reserved_mb": None,
            "allocated_mb": None,
            "source": "peak RSS of a fresh process",
        }
    import torch

    return lambda: {
        "peak_mb": torch.cuda.max_memory_allocated() / 1e6,
        "reserved_mb": torch.cuda.max_memory_reserved() / 1e6,
        "allocated_mb": torch.cuda.memory_allocated() / 1e6,
        "source": "torch.cuda peak allocated",
    }


def available_bytes(device: str, proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> int | None:
    """Return the memory that this process may still take on the device; None where it is unknown.

    On the CPU it is what the kernel calls available, or what is left of the process's cgroup (version 2) or of a parent
    of it, whichever is less.

    Args:
        proc, cgroups: paths of the kernel's file systems, for tests.
    """
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path(proc, "meminfo").read_text()
        found.append(int(text.partition("MemAvailable:")[2].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        inner = Path(cgroups, Path(proc, "self/cgroup").read_text().partition("0::/")[2].strip())
        for folder in (inner, *inner.parents):
            with contextlib.suppress(OSError, ValueError):  # "max" is no number
                limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
                found.append(max(0, limit - used))
            if folder == Path(cgroups):
                break
    return min(found, default=None)


def peak_resident_bytes() -> int:
    """Return this process's peak resident set. Linux's ru_maxrss starts at the parent's peak; VmHWM does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_device(device: str) -> dict[str, Any]:
    """Describe the device as torch knows it; the meter's description overrides these fields."""
    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else cpu_name()
    return {
        "name": name,
        "kind": device,
        "uuid_hash": None,
        "driver": None,
        "power_limit_w": None,
        "threads": torch.get_num_threads(),
    }
