"""Any weight format of quantwatt, 16-bit or float32 inputs: the packed weight is dequantized in every call.

The layer takes the format's memory, and for many tokens more time than the unquantized layer. Large weights are
dequantized and multiplied in parts, which reuse the same memory, so that the float weight of a whole layer never
exists. For few tokens, where reading the weight from memory takes most of the time, a C kernel dequantizes on the fly.
"""

from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.formats import convolution
from quantwatt.formats.packing import pack
from quantwatt.formats.quantized_weight import QuantizedWeight
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.inference import fused
from quantwatt.inference.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "unpack and multiply in float", "torch", 1e-3
FEW = 16  # up to this many tokens, the C kernel is faster
PART = 1 << 22  # weights dequantized at once: 16 MB in float32, which the allocator reuses; larger blocks are not kept


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    return None if layer["activations"] is None else "takes inputs that are not quantized"


class Layer(QuantizedLinear):
    weight_format: WeightFormat
    codes: torch.Tensor
    scale: torch.Tensor  # as the format stores it
    tensor_scale: torch.Tensor | None
    zero: torch.Tensor | None
    group_index: torch.Tensor | None
    few_tokens_in_c: bool

    def _hold(self, quantized, weight_format, dtype):
        self.weight_format = weight_format
        self._buffer("codes", pack(quantized.codes, weight_format.bits), torch.uint8)
        packed_scale = weight_format.pack_scale(quantized.scale, quantized.tensor_scale)
        self._buffer("scale", packed_scale.contiguous(), weight_format.scale_dtype)
        self._buffer("tensor_scale", quantized.tensor_scale, torch.float32)
        self._buffer("zero", quantized.zero, weight_format.zero_dtype)
        self._buffer("group_index", quantized.group_index, torch.int32)
        self.few_tokens_in_c = self.geometry is None and fused.few_tokens_in_c(quantized)

    def _quantized(self):
        scale = self.weight_format.unpack_scale(self.scale, self.out_features, self.tensor_scale)
        return QuantizedWeight(self.codes, scale, self.zero, group_index=self.group_index)

    def _product(self, inputs):
        few = 0 < inputs.numel() <= FEW * self.in_features and not torch.compiler.is_compiling()  # as in fused.py
        if few and self.few_tokens_in_c and inputs.is_cpu and inputs.dtype in fused.TYPES_IN_C:
            call = self.call
            if call is None:
                call = fused.FewTokens(self._quantized(), self.weight_format, self.in_features, self.bias)
                # Scales of 8 bits are unpacked at every call: kept as float32 they would take the memory of four.
                self.call = call if self.scale.dtype == torch.float32 else None
            return call(inputs)
        quantized = self._quantized()
        rows = max(1, PART // self.in_features) if self.geometry is None else self.out_features
        if rows >= self.out_features:
            return self._part(inputs, quantized, self.bias)
        starts = range(0, self.out_features, rows)
        biases = [None for _ in starts] if self.bias is None else self.bias.split(rows)
        parts = [quantized.rows(start, start + rows) for start in starts]
        products = [self._part(inputs, part, bias) for part, bias in zip(parts, biases, strict=True)]
        return torch.cat(products, dim=-1)

    def _part(self, inputs, quantized, bias):
        weight = fused.dequantize(quantized, self.weight_format, self.in_features, inputs.dtype)
        return convolution.product(inputs, weight, bias, self.geometry)
