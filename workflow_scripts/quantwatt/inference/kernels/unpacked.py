"""Any weight format of quantwatt, 16-bit or float32 inputs: the packed weight is dequantized in every call.

The layer takes the format's memory, and for many tokens more time than the unquantized layer. Large weights are
dequantized and multiplied in parts, which reuse the same memory, so that the float weight of a whole layer never
exists. For few tokens, where reading the weight from memory takes most of the time, a C kernel dequantizes on the fly.
"""

from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.formats import convolution
from quantwatt.formats.group_numbers import GroupNumbers
from quantwatt.formats.packing import pack, unpack
from quantwatt.formats.quantized_weight import QuantizedWeight
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.inference import fused
from quantwatt.inference.linear import QuantizedLinear
from quantwatt.inference.packed import Held, PackedWeight, has_nan_codes

NAME, PACKAGE, BOUND = "unpack and multiply in float", "torch", 1e-3
FEW = 16  # up to this many tokens, the C kernel is faster
PART = 1 << 22  # weights dequantized at once: 16 MB in float32, which the allocator reuses; larger blocks are not kept


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    return None if layer["activations"] is None else "takes inputs that are not quantized"


class Layer(QuantizedLinear):
    weight_format: WeightFormat
    codes: torch.Tensor
    scale: torch.Tensor  # as GroupNumbers hold it; so are the three below
    scale_factor: torch.Tensor | None
    zero: torch.Tensor | None
    zero_factor: torch.Tensor | None
    rows_of_scale: int
    group_index: torch.Tensor | None
    nan_codes: bool

    def _hold(self, quantized, weight_format, dtype):
        self.weight_format = weight_format
        self.nan_codes = has_nan_codes(quantized.codes, weight_format)
        scale, zero = weight_format.held_grid(quantized.scale, quantized.zero, quantized.tensor_scale)
        self.rows_of_scale = scale.rows
        held = {"codes": pack(quantized.codes, weight_format.bits), "scale": scale.stored, "scale_factor": scale.factor}
        held |= {
            "zero": zero and zero.stored,
            "zero_factor": zero and zero.factor,
            "group_index": quantized.group_index,
        }
        for name, tensor in held.items():
            self.register_buffer(name, None if tensor is None else tensor.contiguous(), persistent=False)

    @property
    def held(self):
        scale = GroupNumbers(self.scale, self.scale_factor, self.rows_of_scale)
        zero = None if self.zero is None else GroupNumbers(self.zero, self.zero_factor)
        return Held(self.codes, scale, zero, self.bias, self.group_index, self.nan_codes)

    def _product(self, inputs):
        packed = self._packed(inputs)
        few = 0 < inputs.numel() <= FEW * self.in_features
        if packed is not None and few and self.geometry is None and self.group_index is None:
            return packed.multiply(inputs)
        rows = max(1, PART // self.in_features) if self.geometry is None else self.out_features
        if rows >= self.out_features:
            return self._part(inputs, packed, 0, self.out_features)
        starts = range(0, self.out_features, rows)
        ends = [min(start + rows, self.out_features) for start in starts]
        return torch.cat([self._part(inputs, packed, *ends) for ends in zip(starts, ends, strict=True)], dim=-1)

    def _packed(self, inputs):
        """Return the weight for C, or None where PyTorch unpacks it."""
        if fused.library_for(inputs, inputs.dtype) is None:
            return None
        if self.call is None:
            self.call = PackedWeight(self.held, self.weight_format, self.in_features)
        return self.call

    def _part(self, inputs, packed, start, stop):
        """Multiply by the rows from `start` to `stop`."""
        bias = None if self.bias is None else self.bias[start:stop]
        weight = (
            self._unpacked(start, stop, inputs.dtype) if packed is None else packed.unpacked(start, stop, inputs.dtype)
        )
        return convolution.product(inputs, weight, bias, self.geometry)

    def _unpacked(self, start, stop, dtype):
        """Return rows [rows, columns] of the weight, by PyTorch."""
        held, codes = self.held, unpack(self.codes[start:stop], self.weight_format.bits, self.in_features)
        scale, zero = (numbers and numbers.expanded(start, stop) for numbers in (held.scale, held.zero))
        return (
            QuantizedWeight(codes, scale, zero, group_index=self.group_index).dequantize(self.weight_format).to(dtype)
        )
