"""The device and the meter of this machine where the configuration leaves them to it."""

import os
from pathlib import Path


def resolve_device(device):
    """ "auto" as "cuda" where an NVIDIA driver is loaded, else "cpu"; without importing torch."""
    if device != "auto":
        return device
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def resolve_meter(meter, device):
    """ "auto" as "nvml" on cuda, "rapl" where the counters are readable, else "estimate"."""
    if meter != "auto":
        return meter
    if device == "cuda":
        return "nvml"
    counters = Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj")
    return "rapl" if any(os.access(counter, os.R_OK) for counter in counters) else "estimate"
