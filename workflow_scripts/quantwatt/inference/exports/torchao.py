"""torchao's 8-bit tensors in its own safetensors form, which diffusers and transformers load.

A weight NAME.weight becomes NAME._weight_qdata, NAME._weight_scale, ..., and the file's metadata says what they are.
Symmetric 8-bit weights per output channel, with 16-bit activations or with 8-bit ones per token, and what the format
`torchao` holds in 8 bits. torchao has one step more for activations (255 over twice the largest, not 254).
"""

import torch

from quantwatt import registry
from quantwatt.formats.library import library_of
from quantwatt.inference.exports import NotExpressible, model_file, weight_of

PARTS = {"codes", "scale", "qdata", "zero_point", "attributes"}
CONV1D = False
TOKEN = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}

file_name = model_file


def tensors(name, layer, state, dtype):
    """See quantwatt.inference.exports: here torchao's tensors, which `finish` takes apart."""
    if layer["weights"]["format"] == "torchao":
        held = library_of(layer["weights"]).restore(state, layer, None, dtype, "cpu")
        return {f"{name}.weight": held.weight.data}
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


def configuration(details, skipped):
    """See quantwatt.inference.exports."""
    names = {_configuration(layer) for layer in details["layers"].values()}
    if len(names) > 1:
        raise NotExpressible(
            f"its layers differ ({', '.join(sorted(names))}), and the form has one configuration for all"
        )
    own = registry.load("formats", "torchao").configuration_of(names.pop(), group_size=128)  # of 8 bits without groups
    from torchao.core.config import config_to_dict

    return {
        "quant_method": "torchao",
        "quant_type": {"default": config_to_dict(own)},
        "modules_to_not_convert": skipped,
    }


def finish(folder, tensors, configuration):
    """torchao's own way of writing its tensors."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    return flatten_tensor_state_dict(tensors)


def _configuration(layer):
    """The name of torchao's configuration that computes what a layer holds."""
    weights, activations = layer["weights"], layer["activations"]
    if weights["format"] == "torchao":
        if weights["configuration"] == "int4-weight-only":
            raise NotExpressible("its form for int4 is for one kind of device")
        return weights["configuration"]
    kind = (weights["format"], weights.get("bits"), weights.get("symmetric"), weights.get("granularity"))
    if kind not in {("integer", 8, True, "channel"), ("integer", 8, True, "tensor")}:
        raise NotExpressible("of integer grids it has the symmetric one of 8 bits per output channel")
    if activations is None:
        return "int8-weight-only"
    if {key: activations.get(key, value) for key, value in TOKEN.items()} != TOKEN:
        raise NotExpressible("of activations it has symmetric 8-bit ones per token, found at run time")
    return "int8-dynamic"
