"""Select the GPUs that this program may use from those that NVML lists, and read their identity and state."""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from quantwatt.measuring.meters import Metering, MeterUnavailable

ALLOCATIONS = ("CUDA_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")  # the first variable that is set is used
REASONS = {  # nvmlClocksEventReasons: why the clocks are lower than they could be
    0x1: "idle",
    0x2: "clocks set by the user",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clock",
}


def allocated(nvml: Any, settings: Metering, device: str | None) -> list[Any]:
    """Return the handles of the GPUs that this program may use, in the program's order.

    Args:
        settings, device: as for nvml.open_meter.
    Raises:
        MeterUnavailable: there is no such GPU, or it is unclear which of several GPUs to read.
        NVMLError: a GPU may not be opened.
    """
    use_all = settings.gpus == "all"
    boards = [_open(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    if settings.gpu:
        return [_find(nvml, boards, settings.gpu, "gpu:")]
    if device == "cuda":
        import torch

        n_used = torch.cuda.device_count() if use_all else 1  # torch computes on its first GPU
        uuids = [str(torch.cuda.get_device_properties(index).uuid) for index in range(n_used)]
        names = [uuid if uuid.startswith("MIG-") else f"GPU-{uuid}" for uuid in uuids]
        return [_find(nvml, boards, name, "torch's") for name in names]
    source = next((name for name in ALLOCATIONS if name in os.environ), None)
    names = os.environ[source].split(",") if source else []
    if source is None and len(boards) > 1 and not use_all:
        raise MeterUnavailable(f"there are {len(boards)} GPUs: set CUDA_VISIBLE_DEVICES to the one to measure.")
    if source is None or (source.startswith("SLURM") and len(names) == len(boards)):
        # SLURM hides other jobs' GPUs from NVML, and NVML then counts this job's from 0.
        return [_opened(nvml, board) for board in boards]
    if source == "CUDA_VISIBLE_DEVICES" and names[0].strip().isdecimal():
        _check_order(nvml, boards)
    return [_find(nvml, boards, name.strip(), source) for name in (names if use_all else names[:1])]


def _open(nvml, index):
    """Return a handle; or NVML's error for a board of another user, which `_opened` raises if the board is needed."""
    try:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return error


def _opened(nvml, board):
    if isinstance(board, nvml.NVMLError):
        raise board
    return board


def _find(nvml, boards, name, source):
    """Return the board with an index in NVML's order, a UUID, or the beginning of a UUID."""
    if name.startswith("MIG"):
        raise MeterUnavailable("a MIG slice has no power reading: use a whole GPU.")
    if name.isdecimal() and int(name) < len(boards):
        return _opened(nvml, boards[int(name)])
    handles = [board for board in boards if not isinstance(board, nvml.NVMLError)]
    matching = [handle for handle in handles if name and nvml.nvmlDeviceGetUUID(handle).startswith(name)]
    if len(matching) != 1:
        if any((ask(nvml, nvml.nvmlDeviceGetMigMode, handle) or [0])[0] for handle in handles):
            raise MeterUnavailable(
                f"{source} {name!r} is not a whole GPU, and there is a GPU in MIG mode, whose slices have no power "
                "reading: use a whole GPU."
            )
        raise MeterUnavailable(
            f"no GPU is allocated: {source} {name!r} names none of the {len(boards)} that NVML sees."
        )
    return matching[0]


def _check_order(nvml, boards):
    """Refuse GPU numbers that CUDA and NVML count differently: among unlike boards, CUDA by speed, NVML by slot."""
    handles = [board for board in boards if not isinstance(board, nvml.NVMLError)]
    unlike = len({nvml.nvmlDeviceGetName(handle) for handle in handles}) > 1
    if unlike and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise MeterUnavailable(
            "CUDA_VISIBLE_DEVICES names a GPU by number among unlike ones, which CUDA and NVML number differently: "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name it by its UUID."
        )


def identity(nvml: Any, handle: Any) -> dict[str, Any]:
    name = nvml.nvmlDeviceGetName(handle)
    uuid_hash = hashlib.sha256(nvml.nvmlDeviceGetUUID(handle).encode()).hexdigest()[:16]
    return {"name": name, "fake": "FAKE" in name, "uuid_hash": uuid_hash}


def state(nvml: Any, handle: Any) -> dict[str, Any]:
    query = partial(ask, nvml)
    limit_mw = query(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    pstate = query(nvml.nvmlDeviceGetPerformanceState, handle)
    persistence = query(nvml.nvmlDeviceGetPersistenceMode, handle)
    reasons = query(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:  # before driver 535
        reasons = query(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    memory = query(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2) or query(
        nvml.nvmlDeviceGetMemoryInfo, handle
    )
    policies = (("power", nvml.NVML_PERF_POLICY_POWER), ("thermal", nvml.NVML_PERF_POLICY_THERMAL))
    violations = {cause: query(nvml.nvmlDeviceGetViolationStatus, handle, policy) for cause, policy in policies}
    return {
        "power_limit_w": None if limit_mw is None else limit_mw / 1000,
        "temperature_c": query(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        "sm_clock_mhz": query(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": query(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
        "pstate": None if pstate is None or pstate == nvml.NVML_PSTATE_UNKNOWN else f"P{pstate}",
        "persistence": None if persistence is None else bool(persistence),
        "throttle_reasons": None if reasons is None else throttle_words(reasons),
        # Seconds of throttled clocks since the driver was loaded.
        "throttled_s": None
        if None in violations.values()
        else {cause: violation.violationTime / 1e9 for cause, violation in violations.items()},
        "driver_memory_mb": None if memory is None else memory.used / 1e6,  # of all programs on the board
    }


def throttle_words(reasons: int) -> list[str]:
    """Name the bits of NVML's mask, lowest first; an unknown bit (of a newer driver) keeps its number."""
    bits = [1 << place for place in range(reasons.bit_length()) if reasons >> place & 1]
    return [REASONS.get(bit, f"reason {bit:#x}") for bit in bits]


def together(devices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the descriptions of several boards, as `NvmlMeter.provenance` documents."""
    if len(devices) == 1:
        return dict(devices[0])
    columns = {key: [device[key] for device in devices] for key in devices[0]}
    merged = {key: values[0] if len(set(map(str, values))) == 1 else None for key, values in columns.items()}
    known = {key: values for key, values in columns.items() if None not in values}
    merged |= {key: sum(known[key]) for key in ("power_limit_w", "driver_memory_mb") if key in known}
    merged |= {"temperature_c": max(known["temperature_c"])} if "temperature_c" in known else {}
    if "throttled_s" in known:
        merged["throttled_s"] = {
            cause: sum(s[cause] for s in known["throttled_s"]) for cause in known["throttled_s"][0]
        }
    if "throttle_reasons" in known:
        merged["throttle_reasons"] = list(dict.fromkeys(word for words in known["throttle_reasons"] for word in words))
    counts = {name: columns["name"].count(name) for name in columns["name"]}
    return {
        **merged,
        "name": " + ".join(f"{count} × {name}" for name, count in counts.items()),
        "fake": any(columns["fake"]),
        "uuid_hash": hashlib.sha256("".join(columns["uuid_hash"]).encode()).hexdigest()[:16],
    }


def ask(nvml: Any, call: Callable[..., Any], *arguments: Any, fatal: Collection[int] = ()) -> Any:
    """Return the result of `call`, or None on an NVMLError; errors with one of the codes `fatal` are raised."""
    try:
        return call(*arguments)
    except nvml.NVMLError as error:
        if error.value in fatal:
            raise
        return None
