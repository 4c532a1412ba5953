"""4-bit weights per output channel or group, 8-bit inputs, 32-bit integer sums: quantwatt's Triton kernel.

No library has a kernel for this format: torchao's W4A8 product is for CPUs only, gptqmodel's QQQ accepts only symmetric
weights in groups of 128 and rounds their scales again, and PyTorch's int8 products need 8-bit weights in memory. Here
the weight stays packed as in the checkpoint, two codes per byte, and is unpacked in registers.
"""

from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.formats.activations import IntegerActivations, StaticGrid
from quantwatt.formats.packing import pack
from quantwatt.inference.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "Triton W4A8", "triton", 1e-3
LEAST_GROUP = 64  # a tensor core sums 32 integers at a time, and the two codes of a byte go into two products


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    weights = layer["weights"]
    if "kernel_size" in layer:
        return "multiplies matrices only"
    if weights["format"] != "integer" or weights["bits"] > 4 or weights.get("zero_point") == "float":
        return "takes integers of 4 bits or fewer, with integer zero points"
    if layer["activations"] is None:
        return "takes quantized inputs"
    if weights["granularity"] == "group" and weights["group_size"] % LEAST_GROUP:
        return f"takes groups of multiples of {LEAST_GROUP}"
    return None


def quantize(
    activation_format: IntegerActivations,
    inputs: torch.Tensor,
    static_grid: StaticGrid | None,
    order: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Quantize inputs [tokens, columns] into the layout that the kernel reads.

    Returns:
        (codes [2, tokens, bytes] int8: even columns, then odd columns, padded with 0 if the number of columns is odd;
        scale [tokens] float32; zero [tokens] float32 or None).
    """
    if order is not None:
        inputs = inputs[:, order]
    codes, scale, zero = activation_format.encode(inputs, static_grid)
    codes = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
    tokens = len(codes)
    pairs = codes.reshape(tokens, codes.shape[1] // 2, 2).permute(2, 0, 1).contiguous()
    scale = scale.expand(tokens, 1).reshape(-1).contiguous()
    zero = None if zero is None else zero.expand(tokens, 1).reshape(-1).contiguous()
    return pairs, scale, zero


fused_quantize = torch.compile(quantize, dynamic=True)


class Layer(QuantizedLinear):
    activation_format: IntegerActivations
    order: torch.Tensor | None
    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    sums: torch.Tensor | None
    group: int

    def _hold(self, quantized, weight_format, dtype):
        quantized, order = quantized.in_group_order()
        self._buffer("order", order, torch.int64)
        self.group = weight_format.group_size if weight_format.granularity == "group" else 0
        zero = quantized.zero
        if zero is None:
            zero = torch.full_like(quantized.scale, weight_format.middle)
        self._buffer("codes", pack(quantized.codes, 4), torch.uint8)  # [rows, bytes]
        self._buffer("scale", quantized.scale.T.contiguous(), torch.float32)  # [groups, rows]
        self._buffer("zero", zero.T.contiguous(), torch.int8)
        if not self.activation_format.symmetric:  # to correct the product for the inputs' zero point
            self._buffer("sums", quantized.dequantize(weight_format).sum(dim=1), torch.float32)
        else:
            self.sums = None

    def _product(self, inputs):
        from quantwatt.inference import w4a8_product  # needs Triton

        flat = inputs.reshape(-1, self.in_features)
        step = fused_quantize if inputs.is_cuda else quantize
        codes, scale, zero = step(self.activation_format, flat, self.static_grid, self.order)
        outputs = w4a8_product.product(
            codes, scale, zero, self.codes, self.scale, self.zero, self.sums, self.bias, self.group, inputs.dtype
        )
        return outputs.reshape(*inputs.shape[:-1], self.out_features)
