"""Checks of the device, its energy meters, processors, memory, disks, caches and the network."""

import contextlib
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from quantwatt.jobs import cuda_driver, machine
from quantwatt.measuring import cpus
from tools.examination import MISSING, NOTE, OK

LEAST_FREE_GB = 5
NETWORK_S = 5
HUB = "https://huggingface.co"


def driver():
    answer = cuda_driver.ask(os.environ.get(cuda_driver.VISIBLE))
    if not answer.devices:
        return NOTE, answer.reason, "needed for device: cuda alone"
    names = ", ".join(f"{gpu['name']} (compute capability {'.'.join(map(str, gpu['capability']))})"
                      for gpu in answer.devices)  # fmt: skip
    return OK, f"runs CUDA {'.'.join(map(str, answer.version or ('?',)))} at most; {names}", ""


def chosen_device(config):
    """The device that the configuration selects on this machine; prints nothing."""
    if config["device"] != "auto":
        return config["device"]
    able = machine.refusal("cuda") is None and cuda_driver.ask(os.environ.get(cuda_driver.VISIBLE)).devices
    return "cuda" if able else "cpu"


def device(config):
    """Check the configured device: whether torch and the driver support it."""
    reason = machine.refusal("cuda" if config["device"] == "auto" else config["device"])
    if config["device"] == "auto":
        why = (reason or "").removeprefix("device: cuda, but ").rpartition(": ")[0].partition(": install")[0]
        return OK, f"auto: {chosen_device(config)}" + (f", because {why}" if why else ""), ""
    if reason:
        return MISSING, reason, "choose another device, or mend what the sentence names"
    return OK, config["device"], ""


def meter(name, config):
    """Check whether a meter can be read on this machine; it is needed if the configuration selects it."""
    from quantwatt.measuring.meters import Metering, MeterUnavailable, open_meter

    device = chosen_device(config)
    chosen = machine.resolve_meter(config["meter"], device) == name
    settings = Metering.from_settings({**config["measuring"], "meter": name, "gpus": "all"})
    try:
        with contextlib.closing(open_meter(settings)) as opened:
            source = opened.provenance()["source"]
    except MeterUnavailable as unavailable:
        reason, _, remedy = str(unavailable).rpartition(": ")
        return (MISSING if chosen else NOTE), reason or remedy, remedy if reason else ""
    return OK, source + (" (taken)" if chosen else ""), ""


def processors():
    processors = cpus.count()
    if processors.limit is None:
        return OK, f"{processors.machine}", ""
    limited = f"{processors.machine}, of which this process may use {processors.usable:g} ({processors.limit})"
    return NOTE, limited, f"run snakemake with --cores {max(1, int(processors.usable))}"


def memory_gb():
    """(total, free) memory of the machine in GB; None without /proc/meminfo."""
    if not Path("/proc/meminfo").exists():
        return None
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return tuple(int(lines[key].split()[0]) / 1e6 for key in ("MemTotal", "MemAvailable"))


def memory():
    sizes = memory_gb()
    if sizes is None:
        return NOTE, "not told by this system", ""
    total, free = sizes
    files = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    limits = [int(text) for path in files if path.is_file() and (text := path.read_text().strip()).isdecimal()]
    limited = f"; this container may use {min(limits) / 1e9:.1f} GB" if limits and min(limits) / 1e9 < total else ""
    return OK, f"{free:.1f} GB free of {total:.1f} GB{limited}", ""


def disk(folder):
    """Check the free space on the disk of a folder, which need not exist yet."""
    path = Path(folder).expanduser().absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free, start = shutil.disk_usage(existing).free / 1e9, f"{path}: "
    if not os.access(existing, os.W_OK):
        return MISSING, f"{start}not writable by this user", "choose another folder, or ask for its permissions"
    if free < LEAST_FREE_GB:
        return MISSING, f"{start}{free:.1f} GB free", f"make room: {LEAST_FREE_GB} GB is little for a model"
    return OK, f"{start}{free:.1f} GB free", ""


def caches():
    """{name: folder} of the caches for models and weights."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return {
        "HF_HOME": Path(os.environ.get("HF_HOME") or base / "huggingface"),
        "TORCH_HOME": Path(os.environ.get("TORCH_HOME") or base / "torch"),
    }


def network():
    """Check whether the hub answers; never MISSING, because models on this machine need no network."""
    address = os.environ.get("HF_ENDPOINT", HUB)
    token = "a token is set" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    if any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    ):
        return NOTE, f"HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: nothing is fetched; {token}", ""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=NETWORK_S).close()
    except urllib.error.HTTPError:
        pass  # the hub answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return NOTE, f"{address} cannot be reached ({reason}); {token}", "fetch models where there is a network"
    return OK, f"{address} can be reached; {token}", ""
