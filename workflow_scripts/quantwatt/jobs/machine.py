"""The device and the meter of this machine where the configuration leaves them to it, and whether a device works."""

import ast
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from quantwatt.artifacts.errors import DataError
from quantwatt.jobs import cuda_driver


@dataclass(frozen=True)
class TorchBuild:
    """cuda, hip: the versions that the installed torch was built for, such as "12.8"; None: without."""

    version: str
    cuda: str | None
    hip: str | None


UNKNOWN = TorchBuild("?", "0", None)  # of another environment: whatever driver there is may do


def torch_build():
    """The installed torch by its own version.py, without importing it; None where there is none."""
    try:
        found = importlib.util.find_spec("torch")
    except ModuleNotFoundError:  # by an import hook that hides it
        found = None
    file = found and found.origin and Path(found.origin).with_name("version.py")
    if not file or not file.is_file():
        return None
    told = {}
    for node in ast.parse(file.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(targets[0], ast.Name) and isinstance(node.value, ast.Constant):
            told[targets[0].id] = node.value.value
    return TorchBuild(told.get("__version__", "?"), told.get("cuda"), told.get("hip"))


def refusal(device, build=None):
    """Why torch cannot compute on a device here, or None where nothing speaks against it.

    Args:
        device: "cpu" or "cuda".
        build: a TorchBuild; without it that of this interpreter.
    Returns:
        one sentence that says what to do.
    """
    build = build or torch_build()
    if build is None:
        return "torch is not installed: run this with the environment's Python (.venv/bin/python)."
    if device != "cuda" or build.hip:
        return None
    if build.cuda is None:
        return (
            f"device: cuda, but the installed torch {build.version} is a build for the CPU: install one with CUDA "
            "(https://pytorch.org/get-started/locally/), or set device: cpu."
        )
    told = cuda_driver.ask(os.environ.get(cuda_driver.VISIBLE))
    if not told.devices:
        return f"device: cuda, but {told.reason}: see whether nvidia-smi works, or set device: cpu."
    if told.version and told.version[0] < int(build.cuda.partition(".")[0]):
        driver = ".".join(map(str, told.version))
        return (
            f"device: cuda, but the NVIDIA driver runs CUDA {driver} at most, and the installed torch {build.version} "
            f"needs CUDA {build.cuda}: update the driver, or install a torch for an older CUDA."
        )
    return None


def require(device):
    """Refuse a device that torch cannot compute on here.

    Raises:
        DataError: so it is; the message says what to do.
    """
    if reason := refusal(device):
        raise DataError(reason)


def resolve_device(device, build=None):
    """The device: "auto" as "cuda" where torch and the NVIDIA driver can use a GPU, else "cpu"; torch is not imported.

    Where there is a driver and something else is missing, a sentence on stderr says what was taken and why.

    Args:
        build: as of `refusal`.
    """
    if device != "auto":
        return device
    reason, told = refusal("cuda", build), cuda_driver.ask(os.environ.get(cuda_driver.VISIBLE))
    if reason is None:
        return "cuda" if told.devices else "cpu"
    if told.found:
        print(f"device: auto takes the CPU, although there is an NVIDIA driver. {reason}", file=sys.stderr)
    return "cpu"


def resolve_meter(meter, device):
    """The meter: "auto" as "nvml" on cuda, "rapl" where the counters are readable, else "estimate"."""
    if meter != "auto":
        return meter
    if device == "cuda":
        return "nvml"
    counters = Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj")
    return "rapl" if any(os.access(counter, os.R_OK) for counter in counters) else "estimate"
