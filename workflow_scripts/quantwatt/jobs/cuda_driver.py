"""Ask the NVIDIA driver which GPUs a program on this machine can use.

The driver is asked in a separate process: this process can still fork and choose among the GPUs, and a hanging driver
does not block it. Neither torch nor nvidia-smi is needed. Device files are not checked, because WSL 2 and Jetson have
other device files than a PC.
"""

import contextlib
import ctypes
import functools
import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"
LIBRARY, IN_WSL = "libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"
DEADLINE_S = 60  # seconds; without its persistence daemon the driver must initialize every GPU first
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...


@dataclass(frozen=True)
class Answer:
    """devices: ({"uuid", "name", "capability": [major, minor]}, ...) in CUDA's order.

    version: the newest CUDA version that the driver supports, such as (12, 4); None without a driver.
    reason: why there is no device, half a sentence; None if there is a device.
    found: whether a driver exists and should work.
    """

    devices: tuple[dict[str, Any], ...] = ()
    version: tuple[int, ...] | None = None
    reason: str | None = None
    found: bool = False


def ask(visible: str | None = None) -> Answer:
    """The driver's answer with CUDA_VISIBLE_DEVICES set to `visible`, or unset for None; cached."""
    return _ask(visible, os.environ.get("LD_LIBRARY_PATH"))


@functools.cache
def _ask(visible, libraries):
    environment = {key: value for key, value in os.environ.items() if key != VISIBLE}
    environment |= {} if visible is None else {VISIBLE: visible}
    process = subprocess.Popen(
        [sys.executable, "-I", __file__], env=environment, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()  # without waiting: a process inside a driver call may not end
        reason = f"the NVIDIA driver has not answered for {DEADLINE_S} s; restart the machine"
        return Answer(reason=reason, found=True)
    for line in reversed(output.splitlines()):  # a preloaded library may print further lines
        with contextlib.suppress(ValueError, TypeError):
            reply = json.loads(line)
            version = reply["version"] and tuple(reply["version"])
            return Answer(tuple(reply["devices"]), version, reply["reason"], reply["found"])
    return Answer(reason=f"asking the NVIDIA driver ended with exit code {process.returncode}", found=True)


def answer() -> dict[str, Any]:
    """The fields of `Answer` as a mapping; must run in a separate process."""
    reply: dict[str, Any] = {"devices": [], "version": None, "reason": None, "found": False}
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        reply |= {"reason": f"there is no NVIDIA driver ({LIBRARY} cannot be loaded)"}
        if Path(IN_WSL).exists():
            folder = Path(IN_WSL).parent
            reply |= {"reason": f"{IN_WSL} is not found by its name: add {folder} to LD_LIBRARY_PATH", "found": True}
        return reply
    version, count = ctypes.c_int(), ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) == 0:
        reply["version"] = [version.value // 1000, version.value % 1000 // 10]
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        return reply | {"reason": _why(cuda, code or NO_DEVICE), "found": code not in (0, NO_DEVICE)}
    return reply | {"devices": [_device(cuda, index) for index in range(count.value)], "found": True}


def _why(cuda, code):
    if code == NO_DEVICE:
        hidden = f" among {VISIBLE}={os.environ[VISIBLE]}" if VISIBLE in os.environ else ""
        return f"the NVIDIA driver has no GPU for this program{hidden}"
    text = ctypes.c_char_p()
    with contextlib.suppress(AttributeError):
        cuda.cuGetErrorString(code, ctypes.byref(text))
    return f"the NVIDIA driver does not start: {(text.value or b'unknown error').decode()} (CUDA error {code})"


def _device(cuda, index):
    device, major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device)
    return {"uuid": _uuid(cuda, device), "name": name.value.decode(errors="replace"),
            "capability": [major.value, minor.value]}  # fmt: skip


def _uuid(cuda, device):
    """The UUID as in NVML and CUDA_VISIBLE_DEVICES. The v2 call returns a MIG slice's UUID, the old call its GPU's."""
    board, visible = (ctypes.c_ubyte * 16)(), (ctypes.c_ubyte * 16)()
    cuda.cuDeviceGetUuid(board, device)
    newer = getattr(cuda, "cuDeviceGetUuid_v2", None)
    if newer is None or newer(visible, device) != 0:
        visible = board
    kind = "GPU" if bytes(visible) == bytes(board) else "MIG"
    return f"{kind}-{uuid.UUID(bytes=bytes(visible))}"


if __name__ == "__main__":
    print(json.dumps(answer()))
