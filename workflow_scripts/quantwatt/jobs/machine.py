"""Resolve `device: auto` and `meter: auto` for this machine, and check whether a device works."""

import ast
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantwatt.artifacts.errors import DataError
from quantwatt.jobs import cuda_driver


@dataclass(frozen=True)
class TorchBuild:
    """cuda, hip: the versions that the installed torch was built for, such as "12.8"; None: built without it."""

    version: str
    cuda: str | None
    hip: str | None


AMD_DRIVER = Path("/dev/kfd")  # through which programs compute on AMD's GPUs
UNKNOWN = TorchBuild("?", "0", None)  # torch of another environment: any driver is accepted


def torch_build() -> TorchBuild | None:
    """The build of the installed torch, read from its version.py without importing it; None without torch."""
    try:
        spec = importlib.util.find_spec("torch")
    except ModuleNotFoundError:  # raised by an import hook that hides torch
        spec = None
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if file is None or not file.is_file():
        return None
    constants: dict[str, Any] = {}
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant):
                constants[target.id] = node.value.value
    return TorchBuild(constants.get("__version__", "?"), constants.get("cuda"), constants.get("hip"))


def refusal(device: str, build: TorchBuild | None = None) -> str | None:
    """Why torch cannot compute on a device on this machine; None if no obstacle is detected.

    Args:
        device: "cpu" or "cuda".
        build: a TorchBuild; default: this interpreter's.
    Returns:
        one sentence that tells what to do, or None.
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
    answer = cuda_driver.ask(os.environ.get(cuda_driver.VISIBLE))
    if not answer.devices:
        return f"device: cuda, but {answer.reason}: see whether nvidia-smi works, or set device: cpu."
    if answer.version and answer.version[0] < int(build.cuda.partition(".")[0]):
        driver = ".".join(map(str, answer.version))
        return (
            f"device: cuda, but the NVIDIA driver runs CUDA {driver} at most, and the installed torch {build.version} "
            f"needs CUDA {build.cuda}: update the driver, or install a torch for an older CUDA."
        )
    return None


def require(device: str) -> None:
    """Refuse a device that torch cannot compute on.

    Raises:
        DataError: the reason of `refusal`, which tells what to do.
    """
    if reason := refusal(device):
        raise DataError(reason)


def resolve_device(device: str, build: TorchBuild | None = None) -> str:
    """Resolve "auto" to "cuda" if torch and the driver can use a GPU, else to "cpu"; torch is not imported.

    If there is a driver, but something else is missing, a sentence on stderr explains why the CPU is used.

    Args:
        build: see `refusal`.
    """
    if device != "auto":
        return device
    build = build or torch_build()
    if build is not None and build.hip:
        return "cuda" if AMD_DRIVER.exists() else "cpu"  # ROCm's PyTorch calls its GPUs so
    reason, answer = refusal("cuda", build), cuda_driver.ask(os.environ.get(cuda_driver.VISIBLE))
    if reason is None:
        return "cuda" if answer.devices else "cpu"
    if answer.found:
        print(f"device: auto takes the CPU, although there is an NVIDIA driver. {reason}", file=sys.stderr)
    return "cpu"


def resolve_meter(meter: str, device: str, build: TorchBuild | None = None) -> str:
    """Resolve "auto" to the GPU's or the CPU's meter.

    Args:
        device: "cpu" or "cuda".
        build: see `refusal`.
    Returns:
        on cuda "nvml", or "amdsmi" with a torch for ROCm; on a CPU "rapl" if its counters are readable, else
        "estimate".
    """
    if meter != "auto":
        return meter
    if device == "cuda":
        build = build or torch_build()
        return "amdsmi" if build is not None and build.hip else "nvml"
    counters = Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj")
    return "rapl" if any(os.access(counter, os.R_OK) for counter in counters) else "estimate"
