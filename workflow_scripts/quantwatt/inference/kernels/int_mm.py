"""8-bit inputs times weights of up to 8 bits per output channel, 32-bit integer sums: PyTorch's int8 product.

A weight is stored as its code minus the zero point, in 8 bits.
"""

from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.formats.activations import IntegerActivations, StaticGrid
from quantwatt.inference.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "torch._int_mm", "torch", 1e-3
CUDA_TOKENS = 17  # fewest tokens that the product accepts on CUDA
CUDA_MULTIPLE = 8  # on CUDA, both dimensions of the weight must be multiples of it


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    weights, activations = layer["weights"], layer["activations"]
    if "kernel_size" in layer:
        return "multiplies matrices only"
    if weights["format"] != "integer" or weights["granularity"] == "group":
        return "takes integers per channel or tensor"
    if activations is None:
        return "takes quantized inputs"
    if not weights["symmetric"] and (weights["bits"] == 8 or weights.get("zero_point") == "float"):
        return "takes weights whose codes minus their zero points fit into 8 bits"
    if device == "cpu" and not (weights["bits"] == activations["bits"] == 8 and activations["symmetric"]):
        return "takes only symmetric 8-bit weights and inputs on the CPU, where it is slower than float32"
    if device == "cuda" and (layer["in_features"] % CUDA_MULTIPLE or layer["out_features"] % CUDA_MULTIPLE):
        return f"takes sides that are multiples of {CUDA_MULTIPLE}"
    return None


def quantize(
    activation_format: IntegerActivations, inputs: torch.Tensor, static_grid: StaticGrid | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the codes of inputs [tokens, columns] and their grid, as IntegerActivations.encode does."""
    return activation_format.encode(inputs, static_grid)


def rescale(
    sums: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    weight_scale: torch.Tensor,
    weight_sums: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Compute a layer's outputs from its integer product.

    Args:
        sums: [tokens, rows] int32; scale, zero: the inputs' grid; zero is None where symmetric.
        weight_scale: [1, rows]; weight_sums: [1, rows] int32, sum of each row's integers; bias: [rows] or None.
    """
    if zero is not None:
        sums = sums - zero.int() * weight_sums
    outputs = sums.float() * scale * weight_scale
    if bias is not None:
        outputs = outputs + bias
    return outputs.to(dtype)


class Layer(QuantizedLinear):
    activation_format: IntegerActivations
    codes: torch.Tensor
    scale: torch.Tensor
    sums: torch.Tensor

    quantize, rescale = staticmethod(quantize), staticmethod(rescale)

    def _hold(self, quantized, weight_format, dtype):
        zero = weight_format.middle if quantized.zero is None else quantized.zero.short()  # [rows, 1]
        codes = (quantized.codes.short() - zero).to(torch.int8)  # [rows, columns]; transposed, it has CUDA's layout
        self._buffer("codes", codes, torch.int8)
        self._buffer("scale", quantized.scale.T.contiguous(), torch.float32)  # [1, rows]
        self._buffer("sums", codes.sum(dim=1, dtype=torch.int32)[None], torch.int32)

    def _product(self, inputs):
        codes, scale, zero = self.quantize(
            self.activation_format, inputs.reshape(-1, inputs.shape[-1]), self.static_grid
        )
        tokens = len(codes)
        if codes.is_cuda and tokens < CUDA_TOKENS:
            codes = torch.nn.functional.pad(codes, (0, 0, 0, CUDA_TOKENS - tokens))
        products = torch._int_mm(codes, self.codes.T)[:tokens]  # [tokens, rows] int32
        outputs = self.rescale(products, scale, zero, self.scale, self.sums, self.bias, inputs.dtype)
        return outputs.reshape(*inputs.shape[:-1], self.out_features)
