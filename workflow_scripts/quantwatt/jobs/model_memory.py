"""Estimate the memory for loading a model, from the headers of its weight files."""

import functools
import json
import math
from pathlib import Path

from quantwatt.artifacts.dtypes import BYTES
from quantwatt.artifacts.manifest import PROJECT

LIBRARIES_MB = 2000
SHARE = 1.3  # memory relative to the weights, including computing and converting them
STORED = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}  # bytes of safetensors' dtypes; others: 1
MOST_BYTES = 100_000_000  # largest header, as in safetensors


def model_memory_mb(manifest_path: str | Path, least: int, models: int = 1) -> int:
    """Memory to request in MB for a job that loads a whole model.

    Args:
        manifest_path: the model's manifest.json.
        least: the least request in MB.
        models: how many such models a process holds at once.
    Raises:
        FileNotFoundError: the manifest does not exist yet.
    """
    loaded = _loaded(str(manifest_path), Path(manifest_path).stat().st_mtime_ns)
    return max(least, process_mb(models * loaded))


def at_least(manifest_path: str | Path, least: int, models: int = 1) -> int:
    """As `model_memory_mb`, but `least` without a manifest, for example if only a checkpoint was copied here."""
    return model_memory_mb(manifest_path, least, models) if Path(manifest_path).exists() else least


def process_mb(loaded: int) -> int:
    """Memory in MB of a process that has loaded this many bytes of weights."""
    return LIBRARIES_MB + round(SHARE * loaded / 1e6)


@functools.lru_cache(maxsize=256)
def _loaded(manifest_path, changed):
    """Bytes of all weights, in the stored or the computing dtype, whichever is larger."""
    model = json.loads(Path(manifest_path).read_text())
    computing = BYTES.get(model["settings"].get("dtype"), 4)
    return sum(
        loaded_bytes(PROJECT / model["location"] / name, file["bytes"], computing)
        for name, file in model["files"].items()
        if name.endswith(".safetensors")
    )


def loaded_bytes(path: str | Path, stored: int, computing: int) -> int:
    """Bytes of the tensors of a safetensors file, each in the stored or the computing dtype, whichever is larger.

    Args:
        stored: size of the file; if its header cannot be read, its values are assumed to have 16 bits.
        computing: bytes per value of the computing dtype.
    """
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MOST_BYTES else {}
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        return (
            sum(math.prod(info["shape"]) * max(STORED.get(info["dtype"], 1), computing) for info in tensors) or stored
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the file is checked when it is loaded
        return stored * max(1, computing // 2)
