"""quanto's frozen layers in safetensors, with quanto_qmap.json, as optimum-quanto saves a model of diffusers.

quanto computes them. A layer's `weight._data` holds codes, packed below 8 bits, with `_scale` and `_shift` beside.
"""

from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json
from quantwatt.inference.loaders import Foreign, Layer, Source, tensors

FILES = ("*.safetensors", "*.json")
MAP = "quanto_qmap.json"
BITS = {"qint8": 8, "qint4": 4, "qint2": 2, "qfloat8": 8}
NAMES = {"_data": "data", "_data._data": "data", "_scale": "scale", "_shift": "shift"}
UNUSED = ("input_scale", "output_scale")  # of inputs that are not quantized
LARGEST = 128  # quanto's group size where it is not told


def read(source: Source, denoiser: torch.nn.Module, config: Mapping[str, Any]) -> Foreign:
    """See quantwatt.inference.loaders.

    Raises:
        DataError: the map or a layer's tensors are not quanto's, or inputs are quantized, too.
    """
    if MAP not in source.files:
        raise DataError(f"{source.folder}: no {MAP}; save the model by optimum-quanto's save_pretrained.")
    told, held, found = read_json(source.folder / MAP), tensors(source), Foreign()
    for name, kinds in told.items():
        if kinds.get("activations", "none") not in ("none", None):
            raise DataError(f"{source.folder}: {name}: its inputs are {kinds['activations']}, which is not read.")
        kind = kinds.get("weights", "none")
        for unused in UNUSED:
            held.pop(f"{name}.{unused}", None)
        if kind in ("none", None):
            continue
        prefix = f"{name}.weight."
        parts = {key.removeprefix(prefix): held.pop(key) for key in list(held) if key.startswith(prefix)}
        if kind not in BITS or not {"_scale"} <= parts.keys() <= NAMES.keys():
            raise DataError(f"{source.folder}: the tensors of {name} are not quanto's {kind}.")
        state = {NAMES[key]: tensor for key, tensor in parts.items()}
        found.layers[name] = Layer({"format": "quanto", "weights": kind, "group_size": _group(state, kind)}, state)
    found.rest = held
    return found


def _group(state, kind):
    """Inputs that share a scale."""
    if BITS[kind] == 8:
        return LARGEST
    return state["data"].numel() * 8 // BITS[kind] // state["scale"].numel()
