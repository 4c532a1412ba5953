"""NVIDIA GPUs, by NVML through nvidia-ml-py (module `pynvml`).

Energy is the board's counter (field 83, mJ since the driver was loaded), instant power (field 186, mW) stands
beside it as a check; both with scope 0, the GPU. Older drivers have neither field: then the calls of the same
meaning are used and recorded. nvmlDeviceGetPowerUsage is an average over 1 s on most boards since Ampere.
Values are published about every 100 ms, so a window of less than 5 s is not resolved. Of several boards, energies and
powers are summed.
"""

import math
from functools import partial

from quantwatt.meters import MeterUnavailable, nvml_boards
from quantwatt.meters.nvml_boards import ask
from quantwatt.meters.sampler import SampledMeter, Sampler

INTERVAL_MS = 10
VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by nvmlValueType_t
FIELDS = {"field 83, scope 0": 83, "field 186 (instant), scope 0": 186}
COUNTERS = ("field 83, scope 0", "nvmlDeviceGetTotalEnergyConsumption")  # mJ, the best first
POWERS = ("field 186 (instant), scope 0", "nvmlDeviceGetPowerUsage")  # mW, the best first


class NvmlMeter(SampledMeter):
    name = "nvml"
    reads = "cuda"

    def __init__(self, sampler, nvml, handles, counter, power):
        energy = f"energy: {counter}" if counter else "energy: integral of the power (no counter)"
        super().__init__(sampler, f"{energy}; power: {power or 'slope of the counter'}")
        self._nvml, self._handles = nvml, handles
        self._driver = nvml.nvmlSystemGetDriverVersion()
        self._identities = [nvml_boards.identity(nvml, handle) for handle in handles]

    def provenance(self):
        """Driver, boards and their state at this moment; what the driver does not tell is None.

        Each board stands under "devices". Of several, power limit and memory are summed, the temperature is the
        highest, the throttle reasons are any board's, and whatever else differs is None.
        """
        boards = zip(self._identities, self._handles, strict=True)
        devices = [{**identity, **nvml_boards.state(self._nvml, handle)} for identity, handle in boards]
        return {**super().provenance(), **nvml_boards.together(devices), "driver": self._driver, "devices": devices}


def open_meter(settings, make_sampler=Sampler):
    """A meter of the GPU, or GPUs, that this program may use.

    Args:
        settings: `gpu`, a UUID; without it the GPU that torch uses (where `device` is "cuda"), or else the first that
            CUDA_VISIBLE_DEVICES names, by index in NVML's order or the beginning of a UUID, or else SLURM, or else the
            only GPU. `gpus`: "all" of them, summed.
    Raises:
        MeterUnavailable: no driver, no GPU allocated, no permission, a MIG slice, or neither energy nor power is told.
    """
    nvml = _load()
    try:
        handles = nvml_boards.allocated(nvml, settings)
        if settings.get("gpus") != "all":
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
            raise MeterUnavailable("this GPU's driver tells neither energy nor power: choose the meter none.")
        uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
        arguments = {"uuids": uuids, "counter": counter, "power": power}
        sampler = make_sampler("nvml", arguments, settings.get("interval_ms", INTERVAL_MS) / 1000)
        return NvmlMeter(sampler, nvml, handles, counter, power)
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_NO_PERMISSION:
            raise MeterUnavailable(
                f"NVML does not let this user read the GPU ({error}): ask for access to /dev/nvidia*, or for a job "
                "that the GPU is allocated to."
            ) from error
        raise MeterUnavailable(f"NVML cannot read the GPU ({error}): see whether nvidia-smi can.") from error


def reader(uuids, counter, power):
    """A function that returns (W, J, the sensor's own time in s), of all boards together; NaN where one does not tell.

    Args:
        uuids: the boards.
        counter, power: of COUNTERS and POWERS, or None.
    """
    nvml = _load()
    lost = (nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED, nvml.NVML_ERROR_GPU_IS_LOST)
    read_board = partial(_read, nvml, power=power, counter=counter, fatal=lost)
    try:
        handles = [nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    except nvml.NVMLError as error:
        raise MeterUnavailable(f"NVML finds the GPU no more ({error}).") from error

    def read():
        milliwatts, millijoules, seconds = 0.0, 0.0, 0.0
        try:
            for told_mw, told_mj, told_s in map(read_board, handles):
                milliwatts, millijoules, seconds = milliwatts + told_mw, millijoules + told_mj, seconds + told_s
        except nvml.NVMLError as error:
            raise MeterUnavailable(f"the driver lost the GPU in between ({error})") from error
        return milliwatts / 1000, millijoules / 1000, seconds / len(handles)

    return read


def _read(nvml, handle, power=None, counter=None, fatal=()):
    """(mW, mJ, the time in s that the sensor gives) of one board; NaN where it does not tell. One call for all fields.

    Raises:
        NVMLError: with one of the codes `fatal`.
    """
    told, sensor_s = {power: math.nan, counter: math.nan}, math.nan
    fields = {FIELDS[name]: name for name in (power, counter) if name in FIELDS}
    for name in told.keys() - FIELDS.keys() - {None}:
        value = ask(nvml, getattr(nvml, name), handle, fatal=fatal)
        told[name] = math.nan if value is None else value
    if fields:
        scoped = [(field, 0) for field in fields]  # scope 0: the GPU
        for value in ask(nvml, nvml.nvmlDeviceGetFieldValues, handle, scoped, fatal=fatal) or ():
            if value.nvmlReturn == nvml.NVML_SUCCESS:
                told[fields[value.fieldId]] = getattr(value.value, VALUE_MEMBERS[value.valueType])
                sensor_s = value.timestamp / 1e6 if value.timestamp else math.nan
            elif value.nvmlReturn in fatal:
                raise nvml.NVMLError(value.nvmlReturn)
    return told[power], told[counter], sensor_s


def _all_tell(nvml, handles, name):
    return all(not math.isnan(_read(nvml, handle, power=name)[0]) for handle in handles)


def _refusal(nvml, handle):
    """NVML's code for the power of a board that tells none."""
    try:
        nvml.nvmlDeviceGetPowerUsage(handle)
    except nvml.NVMLError as error:
        return error.value


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
