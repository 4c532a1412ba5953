"""torchao's 8-bit tensors in its safetensors format, which diffusers and transformers load.

A weight NAME.weight becomes NAME._weight_qdata, NAME._weight_scale, ..., and the file's metadata describes them. The
format can express symmetric 8-bit weights per output channel, with 16-bit activations or 8-bit activations per token,
and the 8-bit configurations of the weight format `torchao`. torchao's activation grid has one more step than
quantwatt's: the scale is twice the largest magnitude over 255, not over 254.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from quantwatt import registry
from quantwatt.formats.library import library_of
from quantwatt.inference.exports import NotExpressible, model_file, safetensors, weight_of

PARTS = {"codes", "scale", "qdata", "zero_point", "attributes"}
CONV1D = False
TOKEN = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}

file_name, save = model_file, safetensors


def tensors(
    name: str, layer: Mapping[str, Any], state: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """See quantwatt.inference.exports: returns torchao's tensor subclasses, which `finish` flattens."""
    if layer["weights"]["format"] == "torchao":
        library = library_of(layer["weights"])
        linear: Any = library.restore(state, layer, None, dtype, "cpu")  # ty: ignore[missing-union-attribute]
        return {f"{name}.weight": linear.weight.data}
    from torchao.quantization import Int8Tensor, PerRow
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    _, weight = weight_of(layer, state)
    return {
        f"{name}.weight": Int8Tensor(
            qdata=(weight.codes.to(torch.int16) - 128).to(torch.int8),
            scale=weight.scale.float(),
            block_size=[1, layer["in_features"]],
            dtype=dtype,
            zero_point=torch.zeros(weight.scale.shape, dtype=torch.int8),
            act_quant_kwargs=QuantizeTensorToInt8Kwargs(PerRow()) if layer["activations"] else None,
        )
    }


def configuration(details: Mapping[str, Any], skipped: list[str]) -> dict[str, Any]:
    """See quantwatt.inference.exports."""
    names = {_configuration(layer) for layer in details["layers"].values()}
    if len(names) > 1:
        raise NotExpressible(
            f"its layers differ ({', '.join(sorted(names))}), and the format has one configuration for all"
        )
    # 8-bit configurations have no groups, so the group size does not matter.
    settings = registry.load("formats", "torchao").configuration_of(names.pop(), group_size=128)
    from torchao.core.config import config_to_dict

    return {
        "quant_method": "torchao",
        "quant_type": {"default": config_to_dict(settings)},
        "modules_to_not_convert": skipped,
    }


def finish(
    folder: Path, tensors: Mapping[str, torch.Tensor], configuration: Mapping[str, Any]
) -> tuple[Mapping[str, torch.Tensor], dict[str, str]]:
    """Flatten torchao's tensors with torchao's function for safetensors files."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    return flatten_tensor_state_dict(tensors)  # ty: ignore[invalid-argument-type]  (the library's annotation is wrong)


def _configuration(layer):
    """Return the name of torchao's configuration that computes a layer's formats."""
    weights, activations = layer["weights"], layer["activations"]
    if weights["format"] == "torchao":
        if weights["configuration"] == "int4-weight-only":
            raise NotExpressible("torchao packs int4 weights for one kind of device only")
        return weights["configuration"]
    grid = (weights["format"], weights.get("bits"), weights.get("symmetric"), weights.get("granularity"))
    if grid not in {("integer", 8, True, "channel"), ("integer", 8, True, "tensor")}:
        raise NotExpressible("torchao's integer grid is symmetric with 8 bits per output channel")
    if activations is None:
        return "int8-weight-only"
    if "format" in activations or {key: activations.get(key, value) for key, value in TOKEN.items()} != TOKEN:
        raise NotExpressible("torchao's quantized activations are symmetric with 8 bits per token, and dynamic")
    return "int8-dynamic"
