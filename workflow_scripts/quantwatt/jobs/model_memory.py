"""What loading a model takes of a machine's memory, told from the headers of its weights' files."""

import functools
import json
import math
from pathlib import Path

from quantwatt.artifacts.dtypes import BYTES
from quantwatt.artifacts.manifest import PROJECT

LIBRARIES_MB = 2000
SHARE = 1.3  # of the weights: what computing and converting them takes beside
STORED = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}  # of safetensors' types; of others 1
MOST_BYTES = 100_000_000  # of a header, as of safetensors


def model_memory_mb(manifest_path, least):
    """Megabytes to ask for where a whole model is loaded.

    Args:
        manifest_path: the model's manifest.json.
        least: what is asked for at least.
    Raises:
        FileNotFoundError: the manifest is not there yet.
    """
    loaded = _loaded(str(manifest_path), Path(manifest_path).stat().st_mtime_ns)
    return max(least, process_mb(loaded))


def at_least(manifest_path, least):
    """The same, `least` where the manifest is not there, as after a checkpoint was copied here alone."""
    return model_memory_mb(manifest_path, least) if Path(manifest_path).exists() else least


def process_mb(loaded):
    """Megabytes of a process that has loaded so many bytes of weights."""
    return LIBRARIES_MB + round(SHARE * loaded / 1e6)


@functools.lru_cache(maxsize=256)
def _loaded(manifest_path, changed):
    """Bytes of all weights, as they are stored or in the type that the model computes in, whichever are more."""
    model = json.loads(Path(manifest_path).read_text())
    computing = BYTES.get(model["settings"].get("dtype"), 4)
    return sum(
        loaded_bytes(PROJECT / model["location"] / name, own["bytes"], computing)
        for name, own in model["files"].items()
        if name.endswith(".safetensors")
    )


def loaded_bytes(path, stored, computing):
    """Bytes of the tensors of a safetensors file, each as stored or in `computing` bytes a value.

    Args:
        stored: the file's size; taken for values of half precision where this machine cannot read its header.
    """
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MOST_BYTES else {}
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        return sum(math.prod(own["shape"]) * max(STORED.get(own["dtype"], 1), computing) for own in tensors) or stored
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # checked where it is loaded
        return stored * max(1, computing // 2)
