"""What is there: board, driver, PyTorch, what NVML tells, and the most that the board computes and copies a second."""

import contextlib
from typing import Any

import torch

from benchmarks import peak
from benchmarks.gpu import stages
from quantwatt.measuring import instruments, protocol
from quantwatt.measuring.meters import Metering, nvml_boards

# NVML's fields of power and energy, and the parts of a module that they are read of.
FIELDS = {83: "total energy, mJ", 185: "average power, mW", 186: "instant power, mW", 187: "least limit, mW",
          188: "most limit, mW", 189: "default limit, mW", 190: "current limit, mW"}  # fmt: skip
SCOPES = {0: "GPU", 1: "module", 2: "memory"}
COPIED = {"true": 2**32, "tiny": 2**20}  # bytes


def run(record) -> None:
    """The stage."""
    record.keep(torch=torch_of(record.device), environment=settings())
    meter, reason = instruments.choose_meter(stages.metering(record.meter), None, record.device)
    with contextlib.closing(meter):
        record.keep(meter=meter.provenance(), energy_reason=reason)
    if meter.name == "nvml":
        record.keep(fields=fields(record.device))
    sizes = (256,) if record.size == "tiny" else peak.SIZES
    record.keep(peak_gops=peak.rates(record.device, sizes), copy_gb_per_s=copy_rate(record.device, record.size))


def torch_of(device: str) -> dict[str, Any]:
    """What PyTorch says of itself and of the device."""
    found: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "device": device}
    if device == "cuda":
        told = torch.cuda.get_device_properties(0)
        found |= {"name": told.name, "capability": f"{told.major}.{told.minor}", "memory_mb": told.total_memory / 1e6,
                  "multiprocessors": told.multi_processor_count, "architectures": torch.cuda.get_arch_list(),
                  "cudnn": torch.backends.cudnn.version()}  # fmt: skip
    return found


def settings() -> dict[str, Any]:
    """Settings of PyTorch that change what is measured."""
    return {"float32_matmul_precision": torch.get_float32_matmul_precision(),
            "threads": torch.get_num_threads()}  # fmt: skip


def fields(device: str) -> list[dict[str, Any]]:
    """[{"field", "name", "scope", "value" or None, "error": NVML's number of it or None, "timestamp_s"}]."""
    import pynvml

    from quantwatt.measuring.meters.nvml import VALUE_MEMBERS

    asked = [(number, scope) for number in FIELDS for scope in SCOPES]
    try:
        board = nvml_boards.allocated(pynvml, Metering("nvml"), device)[0]
        values = pynvml.nvmlDeviceGetFieldValues(board, asked)
    except pynvml.NVMLError as refused:
        return [{"field": None, "name": str(refused), "scope": None, "value": None, "error": refused.value}]
    found = []
    for (number, scope), value in zip(asked, values, strict=True):
        told = value.nvmlReturn == pynvml.NVML_SUCCESS
        found.append(
            {"field": number, "name": FIELDS[number], "scope": SCOPES[scope],
             "value": getattr(value.value, VALUE_MEMBERS[value.valueType]) if told else None,
             "error": None if told else value.nvmlReturn, "timestamp_s": value.timestamp / 1e6}
        )  # fmt: skip
    return found


def copy_rate(device: str, size: str) -> float:
    """10^9 bytes a second, read and written, of a copy within the device's memory."""
    source = torch.ones(COPIED[size], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = protocol.measure_latency(lambda: target.copy_(source), 0.0, 5, instruments.synchronize_of(device))
    return 2 * COPIED[size] / float(seconds.min()) / 1e9
