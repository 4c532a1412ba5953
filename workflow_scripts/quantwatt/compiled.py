"""C functions, compiled once per machine, by the system's compiler, into a cache folder.

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
from collections.abc import Mapping
from pathlib import Path

import torch

# Without -ffast-math: NaN must be kept, and results must equal those of the functions of PyTorch that they replace.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
# Argument types of the functions: pointer, int, int64_t, float.
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "q": ctypes.c_int64, "f": ctypes.c_float}


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def cache_folder() -> Path:
    """The folder of what is made once per machine; machines may share it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantwatt"


def processor() -> str:
    """What this CPU can do, as text."""
    return json.dumps(dict(torch.cpu.get_capabilities()), sort_keys=True)


@functools.cache
def key(folder: Path, flags: tuple[str, ...] = FLAGS) -> str:
    """Names what is compiled: the sources of a folder, flags and this CPU."""
    texts = [path.read_text() for path in sorted(folder.glob("*.[ch]"))]
    return hashlib.sha256("\n".join([*texts, *flags, processor()]).encode()).hexdigest()[:16]


def library(
    name: str, folder: Path, arguments: Mapping[str, str], flags: tuple[str, ...] = FLAGS
) -> ctypes.CDLL | None:
    """Return the compiled functions of a folder, or None, with a line in the log, where they cannot be compiled.

    Args:
        name: in the cache folder.
        arguments: {function: letters of TYPES}.
    """
    cache = cache_folder()
    path = cache / f"{name}-{key(folder, flags)}.so"
    try:
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as temporary:  # several jobs may compile at once
                built = Path(temporary) / path.name
                sources = map(str, sorted(folder.glob("*.c")))
                command = [os.environ.get("CC", "cc"), *flags, *sources, "-o", str(built), "-lm"]
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
    for function, letters in arguments.items():
        if hasattr(compiled, function):
            getattr(compiled, function).argtypes = [TYPES[letter] for letter in letters]
    return compiled
