"""Read AMD GPUs with AMD SMI through ROCm's Python package `amdsmi`.

Energy is the socket's accumulator times its resolution in µJ. Power is the socket's current power or, on boards that do
not report it, the average power, in whole watts. Where a module has two dies, as MI250, the first alone reports both.
Written after amdsmi 7.0's documentation and tried against a library without a GPU (tests/amdsmi), never on a board.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from quantwatt.measuring.meters import Metering, MeterUnavailable, nvml_boards
from quantwatt.measuring.meters.sampler import SampledMeter, Sampler

INTERVAL_MS = 10
LEAST_S = 5.0  # as for NVIDIA's boards: how often the firmware publishes is not documented
ALLOCATIONS = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")  # the first that is set is used
POWERS = ("current_socket_power", "average_socket_power")  # W, in order of preference
COUNTER = "energy_accumulator"


class AmdSmiMeter(SampledMeter):
    name = "amdsmi"
    reads = "cuda"  # PyTorch's name of a GPU, ROCm's too

    def __init__(self, sampler: Any, smi: Any, handles: Sequence[Any], counter: bool, power: str | None):
        energy = f"energy: {COUNTER}" if counter else "energy: integral of the power (no counter)"
        super().__init__(sampler, f"{energy}; power: {power or 'slope of the counter'}")
        self._smi, self._handles = smi, handles
        self._identities = [_identity(smi, handle) for handle in handles]
        self.least_s = 0.1 if self.provenance()["fake"] else LEAST_S

    def provenance(self) -> dict[str, Any]:
        """Return the boards and their present state, merged as NvmlMeter.provenance merges them."""
        boards = zip(self._identities, self._handles, strict=True)
        devices = [{**identity, **_state(self._smi, handle)} for identity, handle in boards]
        return {**super().provenance(), **nvml_boards.together(devices), "devices": devices}

    def processes(self) -> list[int] | None:
        """Return the ids of the processes that compute on the boards; None if the driver lists none."""
        listed = [_ask(self._smi, "amdsmi_get_gpu_process_list", handle) for handle in self._handles]
        return None if None in listed else [process["pid"] for board in listed for process in board]


def open_meter(
    settings: Metering, device: str | None = None, make_sampler: Callable[..., Any] = Sampler
) -> AmdSmiMeter:
    """Open a meter of the GPU, or GPUs, that this program may use.

    The GPU is, in this order: the one with the UUID `settings.gpu`; the GPU that torch uses, if `device` is "cuda"; the
    first that one of ALLOCATIONS names, by number or UUID; the only GPU. With `settings.gpus` "all", it is all of these
    GPUs, summed.

    Args:
        settings: Metering; its `gpu`, `gpus` and `interval_ms` are read.
        device: "cuda", "cpu" or None, the device that computes.
    Raises:
        MeterUnavailable: no ROCm, no GPU, no permission, or neither energy nor power reading.
    """
    smi = _load()
    try:
        handles = _allocated(smi, settings, device)
        if settings.gpus != "all":
            handles = handles[:1]
        if not handles:
            raise MeterUnavailable("AMD SMI sees no GPU that this program may use: choose rapl, estimate or none.")
        counter = all(_joules(smi, handle) is not None for handle in handles)
        power = next((name for name in POWERS if all(_watts(smi, handle, name) for handle in handles)), None)
        if not counter and power is None:
            raise MeterUnavailable("this GPU's driver reports neither energy nor power: choose the meter none.")
        arguments = {
            "uuids": [smi.amdsmi_get_gpu_device_uuid(handle) for handle in handles], "counter": counter, "power": power
        }  # fmt: skip
    except smi.AmdSmiException as error:
        raise MeterUnavailable(f"AMD SMI cannot read the GPU ({_words(error)}): check whether amd-smi can.") from error
    sampler = make_sampler("amdsmi", arguments, (settings.interval_ms or INTERVAL_MS) / 1000)
    return AmdSmiMeter(sampler, smi, handles, counter, power)


def reader(uuids: Sequence[str], counter: bool, power: str | None) -> Callable[[], tuple[float, float, float]]:
    """Return a function that returns (W, J, the sensor's timestamp in s), summed over boards; NaN if one has no value.

    Args:
        uuids: the boards.
        counter: whether the energy counter is read; power: one of POWERS, or None.
    """
    smi = _load()
    handles = [handle for handle in _boards(smi) if smi.amdsmi_get_gpu_device_uuid(handle) in uuids]
    if len(handles) != len(uuids):
        raise MeterUnavailable("AMD SMI no longer finds the GPU.")
    nan = float("nan")

    def read():
        watts, joules, sensor_s = 0.0, 0.0, 0.0
        for handle in handles:
            energy = _joules(smi, handle) if counter else None
            joules_of, at_s = energy or (nan, nan)
            watts_of = _watts(smi, handle, power) if power else None
            watts += nan if watts_of is None else watts_of
            joules, sensor_s = joules + joules_of, sensor_s + at_s
        return watts, joules, sensor_s / len(handles)

    return read


def _allocated(smi, settings, device):
    """The handles of the GPUs that this program may use, in the program's order."""
    boards = _boards(smi)
    if settings.gpu:
        return [_find(smi, boards, settings.gpu, "gpu:")]
    if device == "cuda":
        import torch

        count = torch.cuda.device_count() if settings.gpus == "all" else 1
        known = [torch.cuda.get_device_properties(index) for index in range(count)]
        places = [f"{one.pci_domain_id:04x}:{one.pci_bus_id:02x}:{one.pci_device_id:02x}.0" for one in known]
        return [_find(smi, boards, place, "torch's") for place in places]
    source = next((name for name in ALLOCATIONS if name in os.environ), None)
    if source is not None:
        return [_find(smi, boards, name.strip(), source) for name in os.environ[source].split(",")]
    if len(boards) > 1 and settings.gpus != "all":
        raise MeterUnavailable(f"there are {len(boards)} GPUs: set HIP_VISIBLE_DEVICES to the one to measure.")
    return boards


def _boards(smi):
    return smi.amdsmi_get_processor_handles()


def _find(smi, boards, name, source):
    """The board with a number in AMD SMI's order, a PCI address, or a UUID, in AMD's spelling or ROCm's (GPU-…)."""
    if name.isdecimal() and int(name) < len(boards):
        return boards[int(name)]
    wanted = name.lower().removeprefix("gpu-").replace("-", "")
    for board in boards:
        uuid = smi.amdsmi_get_gpu_device_uuid(board).lower().replace("-", "")
        if wanted and (uuid.startswith(wanted) or smi.amdsmi_get_gpu_device_bdf(board).lower() == name.lower()):
            return board
    raise MeterUnavailable(f"no GPU is allocated: {source} {name!r} names none of the {len(boards)} that AMD SMI sees.")


def _joules(smi, handle):
    """(J since the counter began, the sensor's timestamp in s); None where the board has no counter."""
    answer = _ask(smi, "amdsmi_get_energy_count", handle)
    if answer is None or not answer[COUNTER]:
        return None
    return answer[COUNTER] * answer["counter_resolution"] / 1e6, answer["timestamp"] / 1e9


def _watts(smi, handle, name):
    """Power in W; None where the board does not report it."""
    answer = _ask(smi, "amdsmi_get_power_info", handle)
    value = answer and answer.get(name)
    return value if isinstance(value, int) and 0 < value < 0xFFFF else None


def _identity(smi, handle):
    asic, driver = _ask(smi, "amdsmi_get_gpu_asic_info", handle), _ask(smi, "amdsmi_get_gpu_driver_info", handle)
    name = asic["market_name"] if asic else "AMD GPU"
    uuid_hash = hashlib.sha256(smi.amdsmi_get_gpu_device_uuid(handle).encode()).hexdigest()[:16]
    return {"name": name, "fake": "FAKE" in name, "uuid_hash": uuid_hash,
            "driver": driver and driver["driver_version"]}  # fmt: skip


def _state(smi, handle):
    cap = _ask(smi, "amdsmi_get_power_cap_info", handle)
    sensor, metric = smi.AmdSmiTemperatureType.JUNCTION, smi.AmdSmiTemperatureMetric.CURRENT
    memory = _ask(smi, "amdsmi_get_gpu_memory_usage", handle, smi.AmdSmiMemoryType.VRAM)
    return {
        "power_limit_w": cap and cap["power_cap"] / 1e6,
        "temperature_c": _ask(smi, "amdsmi_get_temp_metric", handle, sensor, metric),
        "driver_memory_mb": None if memory is None else memory / 1e6,  # of all programs on the board
    }


def _ask(smi, call, *arguments):
    """The answer of a call; None where the board or the driver does not have it."""
    try:
        return getattr(smi, call)(*arguments)
    except smi.AmdSmiLibraryException:
        return None


def _words(error):
    return error.get_error_info() if hasattr(error, "get_error_info") else str(error)


def _load():
    try:
        import amdsmi as smi
    except ImportError as error:
        raise MeterUnavailable("the meter amdsmi needs ROCm's package: `pip install amdsmi`.") from error
    except Exception as error:  # the package asks for a library that is missing, and goes on without
        raise MeterUnavailable(
            f"the package amdsmi finds no libamd_smi.so of its version ({type(error).__name__}): install ROCm, or "
            "choose rapl, estimate or none."
        ) from error
    try:
        smi.amdsmi_init()
    except smi.AmdSmiException as error:
        raise MeterUnavailable(
            f"AMD SMI does not start ({_words(error)}): install the amdgpu driver, or choose rapl, estimate or none."
        ) from error
    return smi
