"""Integer weights per output channel, integer activations, 32-bit integer sums: oneDNN's int8 product.

The inputs become unsigned codes. The weight becomes signed integers: codes minus their zero points. `rescale` subtracts
the inputs' zero point times the sums of the weight's rows. A code takes one byte here, for any number of bits.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.formats.activations import IntegerActivations
from quantwatt.formats.quantized_weight import QuantizedWeight
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.inference import fused
from quantwatt.inference.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "oneDNN int8", "torch", 1e-3
MOST = 2**15 - 1  # largest sum of a pair of products on CPUs that add pairs in 16 bits


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    return "multiplies matrices only" if "kernel_size" in layer else inexpressible(layer)


def inexpressible(layer: Mapping[str, Any], groups: bool = False) -> str | None:
    """Return why a layer's formats cannot be an int8 product, or None.

    Args:
        groups: whether groups of inputs may have scales of their own, besides output channels.
    """
    weights, activations = layer["weights"], layer["activations"]
    if weights["format"] != "integer":
        return "takes integers"
    if not groups and (weights["granularity"] == "group" or "group_index" in layer["parts"]):
        return "takes weights per channel or tensor"
    if not weights["symmetric"] and (weights["bits"] == 8 or weights.get("zero_point") == "float"):
        return "takes weights whose codes minus their zero points fit into 8 bits"
    return "takes integer inputs" if activations is None else None


def signed(quantized: QuantizedWeight, weight_format: WeightFormat) -> torch.Tensor:
    """Return the weight's integers, codes minus their zero points: [rows, columns] int8."""
    zero = weight_format.middle if quantized.zero is None else quantized.zero.short()
    return (quantized.codes.short() - zero).to(torch.int8)


class Int8Layer(QuantizedLinear):
    """What `hold` sets, and the packed weight."""

    activation_format: IntegerActivations
    scale: torch.Tensor
    sums: torch.Tensor
    offset: torch.Tensor | None
    one: torch.Tensor
    none: torch.Tensor
    packed: torch.Tensor
    halves: bool


def hold(layer: Int8Layer, quantized: QuantizedWeight, weight_format: WeightFormat) -> torch.Tensor:
    """Set the buffers that `fused.rescale` needs, and `halves`: whether the inputs' codes must be split into halves.

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
    # code = 2 * half + bit, half <= 127: the sum of two products of 127 * 128 fits into 16 bits
    layer.halves = pair > MOST and saturates()
    return integers


@functools.cache
def saturates() -> bool:
    """Return whether this CPU adds pairs of products in saturating 16 bits, as CPUs without VNNI and AMX do."""
    inputs, weight = torch.full((32, 256), 255, dtype=torch.uint8), torch.full((64, 256), 127, dtype=torch.int8)
    sums = multiply(inputs, torch.ops.onednn.qlinear_prepack(weight, None), torch.ones(1), torch.zeros(1).int())
    return bool((sums != 255 * 127 * 256).any())


def multiply(codes: torch.Tensor, packed: torch.Tensor, one: torch.Tensor, none: torch.Tensor) -> torch.Tensor:
    return torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, 0, packed, one, none, None, 1.0, 0, torch.float32, "none", [], ""
    )


class Layer(Int8Layer):
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
