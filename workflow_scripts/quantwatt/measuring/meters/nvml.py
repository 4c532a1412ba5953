"""Read NVIDIA GPUs with NVML through nvidia-ml-py (module `pynvml`).

Energy is the board's counter (field 83, mJ since the driver was loaded). Instant power (field 186, mW) is read as a
cross-check. Both have scope 0, the GPU. Where an older driver lacks a field, the NVML call of the same meaning is used
and recorded; nvmlDeviceGetPowerUsage is an average over 1 s on most boards since Ampere. Values are published about
every 100 ms, so a window of less than 5 s is too short. Energies and powers of several boards are summed.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from quantwatt.measuring.meters import Metering, MeterUnavailable, nvml_boards
from quantwatt.measuring.meters.nvml_boards import ask
from quantwatt.measuring.meters.sampler import SampledMeter, Sampler

INTERVAL_MS = 10
LEAST_S = 5.0  # readings are published every 100 ms: in a shorter block the error is more than 2 %
VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t
FIELDS = {"field 83, scope 0": 83, "field 186 (instant), scope 0": 186}
COUNTERS = ("field 83, scope 0", "nvmlDeviceGetTotalEnergyConsumption")  # mJ, in order of preference
POWERS = ("field 186 (instant), scope 0", "nvmlDeviceGetPowerUsage")  # mW, in order of preference


class NvmlMeter(SampledMeter):
    name = "nvml"
    reads = "cuda"

    def __init__(self, sampler: Any, nvml: Any, handles: Sequence[Any], counter: str | None, power: str | None):
        energy = f"energy: {counter}" if counter else "energy: integral of the power (no counter)"
        super().__init__(sampler, f"{energy}; power: {power or 'slope of the counter'}")
        self._nvml, self._handles = nvml, handles
        self._driver = nvml.nvmlSystemGetDriverVersion()
        self._identities = [nvml_boards.identity(nvml, handle) for handle in handles]
        self.least_s = 0.1 if self.provenance()["fake"] else LEAST_S

    def provenance(self) -> dict[str, Any]:
        """Return driver, boards and their present state; a value that the driver does not report is None.

        "devices" lists each board. For several boards, power limit, memory and throttled seconds are summed, the
        temperature is the highest, the throttle reasons are the union, and any other value that differs is None.
        """
        boards = zip(self._identities, self._handles, strict=True)
        devices = [{**identity, **nvml_boards.state(self._nvml, handle)} for identity, handle in boards]
        return {**super().provenance(), **nvml_boards.together(devices), "driver": self._driver, "devices": devices}

    def processes(self) -> list[int] | None:
        """Return the ids of the processes that compute on the boards; None if the driver lists none, as on WSL 2."""
        calls = (self._nvml.nvmlDeviceGetComputeRunningProcesses_v3, self._nvml.nvmlDeviceGetComputeRunningProcesses_v2)
        for call in calls:  # the second is for drivers before 510; the two have different layouts
            listed = [ask(self._nvml, call, board) for board in self._handles]
            if None not in listed and any(listed):
                return [process.pid for board in listed for process in board]
        return None


def open_meter(settings: Metering, device: str | None = None, make_sampler: Callable[..., Any] = Sampler) -> NvmlMeter:
    """Open a meter of the GPU, or GPUs, that this program may use.

    The GPU is, in this order: the one with the UUID `settings.gpu`; the GPU that torch uses, if `device` is "cuda"; the
    first that CUDA_VISIBLE_DEVICES names, by index in NVML's order or by the beginning of a UUID; the first that SLURM
    names; the only GPU. With `settings.gpus` "all", it is all of these GPUs, summed.

    Args:
        settings: Metering; its `gpu`, `gpus` and `interval_ms` are read.
        device: "cuda", "cpu" or None, the device that computes.
    Raises:
        MeterUnavailable: no driver, no GPU allocated, no permission, a MIG slice, or neither energy nor power reading.
    """
    nvml = _load()
    try:
        handles = nvml_boards.allocated(nvml, settings, device)
        if settings.gpus != "all":
            handles = handles[:1]
        if not handles:
            raise MeterUnavailable("NVML sees no GPU that this program may use: choose rapl, estimate or none.")
        for handle in handles:
            if (ask(nvml, nvml.nvmlDeviceGetMigMode, handle) or [0])[0]:
                raise MeterUnavailable("the GPU is in MIG mode, whose slices have no power reading: use a whole GPU.")
        counter = next((name for name in COUNTERS if _all_tell(nvml, handles, name)), None)
        power = next((name for name in POWERS if _all_tell(nvml, handles, name)), None)
        if counter is None and power is None:
            if nvml.NVML_ERROR_NO_PERMISSION in [_refusal(nvml, handle) for handle in handles]:
                raise nvml.NVMLError(nvml.NVML_ERROR_NO_PERMISSION)
            raise MeterUnavailable("this GPU's driver reports neither energy nor power: choose the meter none.")
        uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
        arguments = {"uuids": uuids, "counter": counter, "power": power}
        sampler = make_sampler("nvml", arguments, (settings.interval_ms or INTERVAL_MS) / 1000)
        return NvmlMeter(sampler, nvml, handles, counter, power)
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_NO_PERMISSION:
            raise MeterUnavailable(
                f"NVML does not let this user read the GPU ({error}): ask for access to /dev/nvidia*, or for a job "
                "that the GPU is allocated to."
            ) from error
        raise MeterUnavailable(f"NVML cannot read the GPU ({error}): check whether nvidia-smi can.") from error


def reader(uuids: Sequence[str], counter: str | None, power: str | None) -> Callable[[], tuple[float, float, float]]:
    """Return a function that returns (W, J, the sensor's timestamp in s), summed over boards; NaN if one has no value.

    The timestamp is the mean over the boards.

    Args:
        uuids: the boards.
        counter, power: of COUNTERS and POWERS, or None.
    """
    nvml = _load()
    lost = (nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED, nvml.NVML_ERROR_GPU_IS_LOST)
    try:
        handles = [nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    except nvml.NVMLError as error:
        raise MeterUnavailable(f"NVML no longer finds the GPU ({error}).") from error
    boards = [_board_reader(nvml, handle, power, counter, lost) for handle in handles]

    def read():
        try:
            milliwatts, millijoules, sensor_s = boards[0]()
            for read_board in boards[1:]:
                board = read_board()
                milliwatts, millijoules, sensor_s = milliwatts + board[0], millijoules + board[1], sensor_s + board[2]
        except nvml.NVMLError as error:
            raise MeterUnavailable(f"the driver lost the GPU in between ({error})") from error
        return milliwatts / 1000, millijoules / 1000, sensor_s / len(boards)

    return read


def _board_reader(nvml, handle, power=None, counter=None, fatal=()):
    """Return a function that returns [mW, mJ, the sensor's timestamp in s] of one board; NaN where it has no value.

    One call reads all fields into memory that is laid out here once: pynvml's function lays it out for every call,
    which costs more than the call. NVMLErrors with one of the codes `fatal` are raised.
    """
    names = (power, counter)
    calls = [
        (place, partial(ask, nvml, getattr(nvml, name), handle, fatal=fatal))
        for place, name in enumerate(names)
        if name is not None and name not in FIELDS
    ]
    wanted = [(place, FIELDS[name]) for place, name in enumerate(names) if name in FIELDS]
    values = (nvml.c_nvmlFieldValue_t * len(wanted))()  # scope 0, the GPU
    fields = [(place, value, value.value) for (place, _), value in zip(wanted, values, strict=True)]
    for (_, number), value in zip(wanted, values, strict=True):
        value.fieldId = number
    get_fields = getattr(nvml.nvmlLib, "nvmlDeviceGetFieldValues", None) if fields else None
    count, address = ctypes.c_int(len(fields)), ctypes.byref(values)

    def read():
        values_read = [math.nan, math.nan, math.nan]
        for place, call in calls:
            answer = call()
            values_read[place] = math.nan if answer is None else answer
        if get_fields is not None:
            refused = get_fields(handle, count, address)
            for place, value, union in fields:
                code = refused or value.nvmlReturn
                if code == nvml.NVML_SUCCESS:
                    values_read[place] = getattr(union, VALUE_MEMBERS[value.valueType])
                    values_read[2] = value.timestamp / 1e6 or math.nan
                elif code in fatal:
                    raise nvml.NVMLError(code)
        return values_read

    return read


def _all_tell(nvml, handles, name):
    return all(not math.isnan(_board_reader(nvml, handle, power=name)()[0]) for handle in handles)


def _refusal(nvml, handle):
    """Return NVML's error code for reading the power of a board; None if it can be read."""
    try:
        nvml.nvmlDeviceGetPowerUsage(handle)
    except nvml.NVMLError as error:
        return error.value


NEEDED = (  # of pynvml, here and in nvml_boards.py
    "NVMLError", "NVML_CLOCK_MEM", "NVML_CLOCK_SM", "NVML_ERROR_DRIVER_NOT_LOADED", "NVML_ERROR_GPU_IS_LOST",
    "NVML_ERROR_NO_PERMISSION", "NVML_ERROR_UNINITIALIZED", "NVML_PERF_POLICY_POWER", "NVML_PERF_POLICY_THERMAL",
    "NVML_PSTATE_UNKNOWN", "NVML_SUCCESS", "NVML_TEMPERATURE_GPU", "c_nvmlFieldValue_t", "nvmlDeviceGetClockInfo",
    "nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetCount",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetHandleByIndex",
    "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMigMode", "nvmlDeviceGetName",
    "nvmlDeviceGetPerformanceState", "nvmlDeviceGetPersistenceMode", "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetTemperature", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetUUID",
    "nvmlDeviceGetViolationStatus", "nvmlInit", "nvmlLib", "nvmlMemory_v2", "nvmlSystemGetDriverVersion",
)  # fmt: skip
REMEDY = "`pip uninstall pynvml nvidia-ml-py3`, then `pip install --force-reinstall nvidia-ml-py`"


def _load():
    try:
        import pynvml as nvml
    except ImportError as error:
        raise MeterUnavailable("the meter nvml needs nvidia-ml-py: `pip install nvidia-ml-py`.") from error
    except Exception as error:  # another package of this name may be for other versions of Python
        raise MeterUnavailable(f"the module pynvml does not load ({type(error).__name__}): {REMEDY}.") from error
    missing = [name for name in NEEDED if not hasattr(nvml, name)]
    if missing:
        raise MeterUnavailable(
            f"the module pynvml at {nvml.__file__} has no {missing[0]}: it belongs to another or an old package, which "
            f"hides nvidia-ml-py: {REMEDY}."
        )
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise MeterUnavailable(
            f"NVML does not start ({error}): install the NVIDIA driver, or choose rapl, estimate or none."
        ) from error
    return nvml
