"""NVIDIA GPUs, by NVML through nvidia-ml-py (module `pynvml`).

Energy is the board's counter (field 83, mJ since the driver was loaded), instant power (field 186, mW) stands
beside it as a check; both with scope 0, the GPU. Older drivers have neither field: then the calls of the same
meaning are used and recorded. nvmlDeviceGetPowerUsage is an average over 1 s on most boards since Ampere.
Values are published about every 100 ms, so a window of less than 5 s is not resolved.
"""

import hashlib
import os
from functools import partial

from quantwatt.meters import MeterUnavailable
from quantwatt.meters.sampler import SampledMeter, Sampler

INTERVAL_MS = 10
VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t


def _field(number, nvml, handle):
    value = nvml.nvmlDeviceGetFieldValues(handle, [(number, 0)])[0]  # scope 0: the GPU
    if value.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(value.nvmlReturn)
    return getattr(value.value, VALUE_MEMBERS[value.valueType])


COUNTERS = {  # mJ, the best first
    "field 83, scope 0": partial(_field, 83),
    "nvmlDeviceGetTotalEnergyConsumption": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu),
}
POWERS = {  # mW, the best first
    "field 186 (instant), scope 0": partial(_field, 186),
    "nvmlDeviceGetPowerUsage": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu),
}


class NvmlMeter(SampledMeter):
    name = "nvml"
    reads = "cuda"

    def __init__(self, sampler, nvml, handle, counter, power):
        energy = f"energy: {counter}" if counter else "energy: integral of the power (no counter)"
        super().__init__(sampler, f"{energy}; power: {power or 'slope of the counter'}")
        self._nvml, self._handle = nvml, handle

    def provenance(self):
        """Device, driver and its state at this moment; what the driver does not tell is None."""
        nvml, handle = self._nvml, self._handle
        ask = partial(_ask, nvml)
        limit_mw = ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        name = nvml.nvmlDeviceGetName(handle)
        return {
            **super().provenance(),
            "name": name,
            "fake": "FAKE" in name,
            "uuid_hash": hashlib.sha256(nvml.nvmlDeviceGetUUID(handle).encode()).hexdigest()[:16],
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "power_limit_w": None if limit_mw is None else limit_mw / 1000,
            "temperature_c": ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            "sm_clock_mhz": ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            "throttle_reasons": ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
        }


def open_meter(settings, make_sampler=Sampler):
    """A meter of the one GPU that this program may use.

    Args:
        settings: `gpu`, a UUID; without it the GPU that torch uses (where `device` is "cuda"), or else the
            first of CUDA_VISIBLE_DEVICES, an index in NVML's order or the beginning of a UUID, or else the only GPU.
    Raises:
        MeterUnavailable: no driver, no GPU allocated, a MIG slice, or neither energy nor power is told.
    """
    nvml = _load()
    wanted = settings.get("gpu") or os.environ.get("CUDA_VISIBLE_DEVICES")
    if settings.get("device") == "cuda" and not settings.get("gpu"):
        import torch

        wanted = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    handle = _find_device(nvml, wanted)
    if (_ask(nvml, nvml.nvmlDeviceGetMigMode, handle) or [0])[0]:
        raise MeterUnavailable("the GPU is in MIG mode, whose slices have no power reading: use a whole GPU.")
    counter, power = (
        next((name for name, read in reads.items() if _ask(nvml, read, nvml, handle) is not None), None)
        for reads in (COUNTERS, POWERS)
    )
    if counter is None and power is None:
        raise MeterUnavailable("this GPU's driver tells neither energy nor power: choose the meter none.")
    arguments = {"uuid": nvml.nvmlDeviceGetUUID(handle), "counter": counter, "power": power}
    sampler = make_sampler("nvml", arguments, settings.get("interval_ms", INTERVAL_MS) / 1000)
    return NvmlMeter(sampler, nvml, handle, counter, power)


def reader(uuid, counter, power):
    """A function that returns (W or None, J or None); `counter`, `power`: keys of COUNTERS and POWERS."""
    nvml = _load()
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def milli(read):
        value = None if read is None else _ask(nvml, read, nvml, handle)
        return None if value is None else value / 1000

    return lambda: (milli(POWERS.get(power)), milli(COUNTERS.get(counter)))


def _find_device(nvml, wanted):
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if wanted is None and len(handles) == 1:
        return handles[0]
    if wanted is None:
        raise MeterUnavailable(f"there are {len(handles)} GPUs: set CUDA_VISIBLE_DEVICES to the one to measure.")
    first = wanted.split(",")[0].strip()
    if first.startswith("MIG"):
        raise MeterUnavailable("a MIG slice has no power reading: use a whole GPU.")
    if first.isdecimal() and int(first) < len(handles):
        return handles[int(first)]
    matching = [handle for handle in handles if first and nvml.nvmlDeviceGetUUID(handle).startswith(first)]
    if len(matching) != 1:
        raise MeterUnavailable(f"no GPU is allocated: {wanted!r} names none of the {len(handles)} that NVML sees.")
    return matching[0]


def _load():
    try:
        import pynvml as nvml
    except ImportError as error:
        raise MeterUnavailable("the meter nvml needs nvidia-ml-py: `pip install nvidia-ml-py`.") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise MeterUnavailable(
            f"NVML does not start ({error}): install the NVIDIA driver, or choose rapl, estimate or none."
        ) from error
    return nvml


def _ask(nvml, call, *arguments):
    try:
        return call(*arguments)
    except nvml.NVMLError:
        return None
