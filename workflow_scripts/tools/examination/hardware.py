"""Checks of the device, of what reads its energy, and of processors, memory, disks, caches and the network."""

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
    told = cuda_driver.ask(os.environ.get(cuda_driver.VISIBLE))
    if not told.devices:
        return NOTE, told.reason, "needed for device: cuda alone"
    names = ", ".join(f"{one['name']} (compute capability {'.'.join(map(str, one['capability']))})"
                      for one in told.devices)  # fmt: skip
    return OK, f"runs CUDA {'.'.join(map(str, told.version or ('?',)))} at most; {names}", ""


def chosen_device(config):
    """The device that the configuration means here, without a word about it."""
    if config["device"] != "auto":
        return config["device"]
    able = machine.refusal("cuda") is None and cuda_driver.ask(os.environ.get(cuda_driver.VISIBLE)).devices
    return "cuda" if able else "cpu"


def device(config):
    """The device that the configuration names, and whether torch and the driver fit."""
    reason = machine.refusal("cuda" if config["device"] == "auto" else config["device"])
    if config["device"] == "auto":
        why = (reason or "").removeprefix("device: cuda, but ").rpartition(": ")[0].partition(": install")[0]
        return OK, f"auto: {chosen_device(config)}" + (f", because {why}" if why else ""), ""
    if reason:
        return MISSING, reason, "choose another device, or mend what the sentence names"
    return OK, config["device"], ""


def meter(name, config):
    """Whether a meter can be read here; what the configuration takes must be."""
    from quantwatt.measuring.meters import Metering, MeterUnavailable, open_meter

    found = chosen_device(config)
    chosen = machine.resolve_meter(config["meter"], found) == name
    settings = Metering.from_settings({**config["measuring"], "meter": name, "gpus": "all"})
    try:
        with contextlib.closing(open_meter(settings)) as opened:
            source = opened.provenance()["source"]
    except MeterUnavailable as unavailable:
        what, _, remedy = str(unavailable).rpartition(": ")
        return (MISSING if chosen else NOTE), what or remedy, remedy if what else ""
    return OK, source + (" (taken)" if chosen else ""), ""


def processors():
    found = cpus.count()
    if found.limit is None:
        return OK, f"{found.machine}", ""
    said = f"{found.machine}, of which this process may use {found.usable:g} ({found.limit})"
    return NOTE, said, f"run snakemake with --cores {max(1, int(found.usable))}"


def memory_gb():
    """(all, free) memory of the machine in GB; None where the system does not tell."""
    if not Path("/proc/meminfo").exists():
        return None
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return tuple(int(lines[key].split()[0]) / 1e6 for key in ("MemTotal", "MemAvailable"))


def memory():
    told = memory_gb()
    if told is None:
        return NOTE, "not told by this system", ""
    total, free = told
    limits = [Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    found = [int(text) for path in limits if path.is_file() and (text := path.read_text().strip()).isdecimal()]
    held = f"; this container may use {min(found) / 1e9:.1f} GB" if found and min(found) / 1e9 < total else ""
    return OK, f"{free:.1f} GB free of {total:.1f} GB{held}", ""


def disk(folder):
    """Free space where a folder is, or will be."""
    path = Path(folder).expanduser().absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    free, found = shutil.disk_usage(there).free / 1e9, f"{path}: "
    if not os.access(there, os.W_OK):
        return MISSING, f"{found}not writable by this user", "choose another folder, or ask for its permissions"
    if free < LEAST_FREE_GB:
        return MISSING, f"{found}{free:.1f} GB free", f"make room: {LEAST_FREE_GB} GB is little for a model"
    return OK, f"{found}{free:.1f} GB free", ""


def caches():
    """{name: folder} where models and weights are kept."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return {
        "HF_HOME": Path(os.environ.get("HF_HOME") or base / "huggingface"),
        "TORCH_HOME": Path(os.environ.get("TORCH_HOME") or base / "torch"),
    }


def network():
    """Whether the hub answers; only said: what is on this machine needs none."""
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
        pass  # it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return NOTE, f"{address} cannot be reached ({reason}); {token}", "fetch models where there is a network"
    return OK, f"{address} can be reached; {token}", ""
