"""Integer weights per output channel, integer activations, 32-bit integer sums: C for CPUs without VNNI or AMX.

On such CPUs, oneDNN sums pairs of int8 products in 16 bits, which can overflow; splitting the inputs' codes into halves
avoids this, but takes two products. This kernel widens the bytes to 16 bits and sums their products in 32 bits
(vpmaddwd). It is twice as fast as float32, and computes the whole layer in one pass. A code takes one byte, for any
number of bits.
"""

from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.formats.activations import ActivationFormat
from quantwatt.inference import fused
from quantwatt.inference.kernels import onednn_int8
from quantwatt.inference.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "int8 in C (AVX2)", "torch", 1e-3


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    if reason := onednn_int8.refusal(layer, device):
        return reason
    if not hasattr(fused.library(), "multiply"):
        return "needs a C compiler and a CPU with AVX2"
    return None if onednn_int8.saturates() else "not needed here: oneDNN's int8 product is exact on this CPU"


class Layer(QuantizedLinear):
    activation_format: ActivationFormat
    panels: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None

    def _hold(self, quantized, weight_format, dtype):
        integers = onednn_int8.signed(quantized, weight_format)
        self._buffer("panels", fused.panels_of(integers), torch.int8)
        self._buffer("scale", quantized.scale[:, 0].contiguous(), torch.float32)
        self._buffer("offset", self.bias, torch.float32)

    def _product(self, inputs):
        flat = inputs.reshape(-1, self.in_features)
        flat = flat.float() if flat.dtype == torch.float16 else flat
        outputs = fused.multiply(flat, self.activation_format, self.static_grid, self.panels, self.scale, self.offset)
        return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)
