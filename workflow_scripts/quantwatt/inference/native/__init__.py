"""The C functions of inference."""

import ctypes
import functools
from pathlib import Path

from quantwatt import compiled
from quantwatt.compiled import address, cache_folder

__all__ = ["address", "cache_folder", "key", "library"]

FOLDER = Path(__file__).parent
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


def key() -> str:
    """Names what is compiled: sources, flags and this CPU."""
    return compiled.key(FOLDER)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled functions, or None, with a line in the log, where they cannot be compiled."""
    return compiled.library("native", FOLDER, ARGUMENTS)
