"""bitsandbytes' weights in safetensors, as diffusers and transformers save them: NF4, FP4 and LLM.int8().

The layout is told in quantwatt.inference.exports.bitsandbytes. Magnitudes that are quantized themselves (double
quantization: blocks of them have 8-bit codes, a magnitude and a common offset) are computed once, in float32.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.formats.packing import pack, unpack
from quantwatt.inference.loaders import Foreign, Layer, Source, named, tensors

FILES = ("*.safetensors", "*.json")
STATE = ".weight.quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")
MOST_BYTES = 4096  # of the JSON about a layer


def read(source: Source, denoiser: torch.nn.Module, config: Mapping[str, Any]) -> Foreign:
    """See quantwatt.inference.loaders.

    Raises:
        DataError: a layer's tensors are not bitsandbytes'.
    """
    settings, held, found = source.configuration("bitsandbytes"), tensors(source), Foreign()
    for name in named(held, ".SCB"):
        held.pop(f"{name}.weight_format", None)
        codes, scale = held.pop(f"{name}.weight", None), held.pop(f"{name}.SCB")
        if codes is None or codes.dtype != torch.int8 or scale.shape != codes.shape[:1]:
            raise DataError(f"{source.folder}: the tensors of {name} are not LLM.int8()'s.")
        weights = {"format": "bitsandbytes-int8", "threshold": float(settings.get("llm_int8_threshold", 6.0))}
        found.layers[name] = Layer(weights, {"codes": codes, "scale": scale.float()})
    for kind in KINDS:
        for name in named(held, STATE + kind):
            try:
                found.layers[name] = _four_bits(held, name, kind)
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                raise DataError(f"{source.folder}: the tensors of {name} are not {kind} ({error}).") from error
    found.rest = held
    return found


def _four_bits(held, name, kind):
    own = {key: held.pop(key) for key in list(held) if key.startswith(f"{name}.weight")}
    stated = own[f"{name}{STATE}{kind}"]
    if stated.numel() > MOST_BYTES:
        raise ValueError("what describes it is too long")
    state = json.loads(bytes(stated.tolist()))
    (rows, columns), width = state["shape"], state["blocksize"]
    if columns % width or width not in registry.schema(f"formats/{kind}")["properties"]["group_size"]["enum"]:
        raise ValueError(f"blocks of {width} do not divide {columns} inputs, or have a size that is not known")
    absmax = own[f"{name}.weight.absmax"]
    if "nested_blocksize" in state:
        of_codes, map_ = (own[f"{name}.weight.nested_{part}"] for part in ("absmax", "quant_map"))
        block = torch.arange(len(absmax)) // state["nested_blocksize"]
        absmax = map_.float()[absmax.long()] * of_codes.float()[block] + state["nested_offset"]
    codebook = registry.load("formats", kind).Format.codebook
    if not torch.allclose(own[f"{name}.weight.quant_map"].float(), codebook, atol=1e-6):
        raise ValueError("its codes have other values")
    codes = unpack(own[f"{name}.weight"].contiguous().view(torch.uint8).reshape(1, -1), 4, rows * columns)
    weights = {"format": kind, "bits": 4, "group_size": width, "clip_search": False}
    parts = {"codes": pack(codes.reshape(rows, columns), 4), "scale": absmax.float().reshape(rows, -1)}
    return Layer(weights, parts)
