"""The C functions of inference: compiled once per machine, by the system's compiler, into a cache folder.

Compiling takes some seconds, once. torch.compile is not used instead: it costs each process 4.3 CPU seconds per
function with a full cache and 6 with an empty one (torch 2.13, 2 AVX2 cores), and a small model's job lasts only a few
seconds.
"""

import ctypes
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("*.c"))
# Without -ffast-math: NaN must be kept, and the codes must equal those of quantwatt.formats.activations.
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
# Argument types of the functions: pointer, int, int64_t, float.
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "q": ctypes.c_int64, "f": ctypes.c_float}
ARGUMENTS = {
    "quantize": "pi" + "qqqqq" + "iiiiii" + "pppi",
    "rescale": "pi" + "qqq" + "ppippp" + "ipi",
    "packed_paths": "",
    "unpack": "piqqipi",
    "multiply_packed": "pipiqpi",
    "hadamard_paths": "",
    "hadamard": "pi" + "qqq" + "f" + "ppp" + "ii",
    "int8_paths": "",
    "int8_multiply": "pi" + "piq" + "ppi" + "pi",
}


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def cache_folder() -> Path:
    """The folder of what is made once per machine; machines may share it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantwatt"


def processor() -> str:
    """What this CPU can do, as text."""
    return json.dumps(dict(torch.cpu.get_capabilities()), sort_keys=True)


@functools.cache
def key() -> str:
    """Names what is compiled: sources, flags and this CPU."""
    texts = [path.read_text() for path in sorted(FOLDER.glob("*.[ch]"))]
    return hashlib.sha256("\n".join([*texts, *FLAGS, processor()]).encode()).hexdigest()[:16]


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled functions, or None, with a line in the log, where they cannot be compiled."""
    folder = cache_folder()
    path = folder / f"native-{key()}.so"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:  # several jobs may compile at once
                built = Path(temporary) / path.name
                command = [os.environ.get("CC", "cc"), *FLAGS, *map(str, SOURCES), "-o", str(built), "-lm"]
                subprocess.run(command, check=True, capture_output=True, text=True)
                built.replace(path)
        compiled = ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        message = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
        print(
            f"the C functions are not compiled ({message}): slower functions of PyTorch are used instead.",
            file=sys.stderr,
        )
        return None
    for name, arguments in ARGUMENTS.items():
        if hasattr(compiled, name):
            getattr(compiled, name).argtypes = [TYPES[letter] for letter in arguments]
    return compiled
