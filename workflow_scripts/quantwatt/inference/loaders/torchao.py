"""torchao's 8-bit tensors in its safetensors format, as diffusers and transformers save them.

The layout is told in quantwatt.inference.exports.torchao. torchao computes them; which of its configurations a layer
has follows from the tensor's class and from whether it quantizes its inputs.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open

from quantwatt.artifacts.errors import DataError
from quantwatt.inference.loaders import Foreign, Layer, Source, named, tensors

FILES = ("*.safetensors", "*.json")
ATTRIBUTES = "attributes"  # the part of quantwatt's torchao format with the tensor's attributes
CLASSES = {"Int8Tensor": "int8", "Float8Tensor": "float8"}
MOST_BYTES = 2**14  # of the JSON about a layer


def read(source: Source, denoiser: torch.nn.Module, config: Mapping[str, Any]) -> Foreign:
    """See quantwatt.inference.loaders.

    Raises:
        DataError: a layer's tensors are not torchao's 8-bit ones.
    """
    source.configuration("torchao")
    held, found, attributes = tensors(source), Foreign(), _attributes(source)
    for name in named(held, "._weight_qdata"):
        prefix = f"{name}._weight_"
        parts = {key.removeprefix(prefix): held.pop(key) for key in list(held) if key.startswith(prefix)}
        text = attributes.get(f"{name}.weight", "")
        weights = {"format": "torchao", "configuration": _configuration(text, name, source), "group_size": 128}
        parts[ATTRIBUTES] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        if parts["qdata"].dim() != 2 or "scale" not in parts:
            raise DataError(f"{source.folder}: the tensors of {name} are not torchao's 8-bit ones.")
        found.layers[name] = Layer(weights, parts)
    found.rest = held
    return found


def _attributes(source):
    """{tensor: JSON about it} of all files' metadata."""
    found = {}
    for path in source.ending(".safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= file.metadata() or {}
    return found


def _configuration(text, name, source):
    try:
        told = json.loads(text) if len(text) <= MOST_BYTES else {}
    except json.JSONDecodeError:
        told = {}
    kind = CLASSES.get(told.get("_type")) if isinstance(told, dict) else None
    if kind is None:
        raise DataError(f"{source.folder}: {name} is none of torchao's {' or '.join(CLASSES)}, which are read.")
    inside = told.get("_data", told)
    return f"{kind}-{'dynamic' if inside.get('act_quant_kwargs') else 'weight-only'}"
