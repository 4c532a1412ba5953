"""The GPUs that CUDA gives to a program here, as the driver itself tells them.

The driver is asked in a process of its own: this one stays free to fork and to choose among the GPUs, and a driver that
hangs holds nothing up. Neither torch nor nvidia-smi is needed, and device files are not looked at: WSL 2 and Jetson
have others than a PC.
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

VISIBLE = "CUDA_VISIBLE_DEVICES"
LIBRARY, IN_WSL = "libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1"
DEADLINE_S = 60  # without its persistence daemon a driver initializes each board anew, in seconds
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...


@dataclass(frozen=True)
class Answer:
    """devices: ({"uuid", "name", "capability": [major, minor]}, ...) in CUDA's order.

    version: the newest CUDA that the driver runs, such as (12, 4); None without a driver.
    reason: why there is no device, half a sentence; None where there is one.
    found: whether there is a driver that could be expected to work.
    """

    devices: tuple = ()
    version: tuple | None = None
    reason: str | None = None
    found: bool = False


def ask(visible=None):
    """What the driver tells with CUDA_VISIBLE_DEVICES set to `visible`, or unset where it is None; asked once."""
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
        process.kill()  # not waited for: inside a driver's call it may not die
        reason = f"the NVIDIA driver has not answered for {DEADLINE_S} s; restart the machine"
        return Answer(reason=reason, found=True)
    for line in reversed(output.splitlines()):  # whatever a preloaded library prints beside it
        with contextlib.suppress(ValueError, TypeError):
            told = json.loads(line)
            version = told["version"] and tuple(told["version"])
            return Answer(tuple(told["devices"]), version, told["reason"], told["found"])
    return Answer(reason=f"asking the NVIDIA driver ended with exit code {process.returncode}", found=True)


def answer():
    """What `ask` returns, as one mapping; run in a process of its own."""
    told = {"devices": [], "version": None, "reason": None, "found": False}
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        told |= {"reason": f"there is no NVIDIA driver ({LIBRARY} cannot be loaded)"}
        if Path(IN_WSL).exists():
            folder = Path(IN_WSL).parent
            told |= {"reason": f"{IN_WSL} is not found by its name: add {folder} to LD_LIBRARY_PATH", "found": True}
        return told
    version, count = ctypes.c_int(), ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) == 0:
        told["version"] = [version.value // 1000, version.value % 1000 // 10]
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        return told | {"reason": _why(cuda, code or NO_DEVICE), "found": code not in (0, NO_DEVICE)}
    return told | {"devices": [_device(cuda, index) for index in range(count.value)], "found": True}


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
    """As NVML and CUDA_VISIBLE_DEVICES write it. The newer call tells a MIG slice, the older one the slice's GPU."""
    board, own = (ctypes.c_ubyte * 16)(), (ctypes.c_ubyte * 16)()
    cuda.cuDeviceGetUuid(board, device)
    newer = getattr(cuda, "cuDeviceGetUuid_v2", None)
    if newer is None or newer(own, device) != 0:
        own = board
    kind = "GPU" if bytes(own) == bytes(board) else "MIG"
    return f"{kind}-{uuid.UUID(bytes=bytes(own))}"


if __name__ == "__main__":
    print(json.dumps(answer()))
