"""Integer weights per output channel, integer activations, 32-bit integer sums: oneDNN's product of bytes.

The inputs become unsigned codes and the weight signed ones; both zero points are taken out of the sums afterwards, the
inputs' by the sums of the weight's rows. Whatever its bits, a weight takes a byte per code here.
"""

import functools

import torch

from quantwatt.inference import fused
from quantwatt.inference.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "oneDNN int8", "torch", 1e-3
MOST = 2**15 - 1  # what a pair of products may come to where pairs are added in 16 bits


def refusal(layer, device):
    return "multiplies matrices only" if "kernel_size" in layer else inexpressible(layer)


def inexpressible(layer):
    """Why a layer's formats cannot be bytes times bytes with one scale per output channel, or None."""
    weights, activations = layer["weights"], layer["activations"]
    if weights["format"] != "integer":
        return "takes integers"
    if weights["granularity"] == "group" or "group_index" in layer["parts"]:
        return "takes weights per channel or tensor"
    if not weights["symmetric"] and (weights["bits"] == 8 or weights.get("zero_point") == "float"):
        return "takes weights whose codes less their zero points are bytes"
    return "takes integer inputs" if activations is None else None


def signed(quantized, weight_format):
    """The weight's integers, codes less their zero points: [rows, columns] int8."""
    zero = weight_format.middle if quantized.zero is None else quantized.zero.short()
    return (quantized.codes.short() - zero).to(torch.int8)


def hold(layer, quantized, weight_format):
    """Give a layer what `rescale` reads of its weight, and whether the inputs' codes must come in halves.

    Returns:
        the weight's integers [rows, columns] int8.
    """
    integers = signed(quantized, weight_format)
    layer._buffer("scale", quantized.scale[:, 0].contiguous(), torch.float32)
    layer._buffer("sums", integers.sum(dim=1), torch.float32)
    layer._buffer("offset", layer.bias, torch.float32)
    layer._buffer("one", torch.ones(1), torch.float32)
    layer._buffer("none", torch.zeros(1), torch.int32)
    span = layer.activation_format.highest - layer.activation_format.lowest
    pair = 2 * span * integers.short().abs().max().item()
    # code = 2 * half + bit: two products of 127 * 128 stay within 16 bits
    layer.halves = pair > MOST and saturates()
    return integers


@functools.cache
def saturates():
    """Whether this CPU adds pairs of products in 16 bits, as those do that have neither VNNI nor AMX."""
    inputs, weight = torch.full((32, 256), 255, dtype=torch.uint8), torch.full((64, 256), 127, dtype=torch.int8)
    sums = multiply(inputs, torch.ops.onednn.qlinear_prepack(weight, None), torch.ones(1), torch.zeros(1).int())
    return bool((sums != 255 * 127 * 256).any())


def multiply(codes, packed, one, none):
    return torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, 0, packed, one, none, None, 1.0, 0, torch.float32, "none", [], ""
    )


class Layer(QuantizedLinear):
    def _hold(self, quantized, weight_format, dtype):
        integers = hold(self, quantized, weight_format)
        self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(integers, None), persistent=False)

    def _product(self, inputs):
        flat = inputs.reshape(-1, inputs.shape[-1])
        codes, scale, zero = fused.quantize(flat, self.activation_format, self.static_grid, self.halves)
        sums = multiply(codes, self.packed, self.one, self.none)
        lowest = self.activation_format.lowest
        outputs = fused.rescale(
            sums, scale, zero, lowest, self.scale, self.sums, self.offset, inputs.dtype, self.halves
        )
        return outputs.reshape(*inputs.shape[:-1], self.out_features)
