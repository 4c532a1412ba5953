"""Any weight of ours, 16-bit or float32 inputs: the weight stays packed, and every call unpacks it and multiplies.

It takes the format's memory, and more time than the unquantized layer.
"""

import torch

from quantwatt import convolution, fused
from quantwatt.formats import QuantizedWeight, pack
from quantwatt.linear import QuantizedLinear

NAME, PACKAGE, BOUND = "unpack and multiply in float", "torch", 1e-3


def refusal(layer, device):
    return None if layer["activations"] is None else "takes inputs that are not quantized"


class Layer(QuantizedLinear):
    def _hold(self, quantized, weight_format, dtype):
        self.weight_format = weight_format
        self._buffer("codes", pack(quantized.codes, weight_format.bits), torch.uint8)
        self._buffer("scale", quantized.scale.contiguous(), weight_format.scale_dtype)
        self._buffer("zero", quantized.zero, weight_format.zero_dtype)
        self._buffer("group_index", quantized.group_index, torch.int32)

    def _packed(self):
        """The codes as `quantwatt.formats.pack` has them, and in how many bits."""
        return self.codes, self.weight_format.bits

    def _product(self, inputs):
        codes, bits = self._packed()
        held = QuantizedWeight(codes, self.scale, self.zero, group_index=self.group_index)
        weight = fused.dequantize(held, self.weight_format, self.in_features, inputs.dtype, bits)
        return convolution.product(inputs, weight, self.bias, self.geometry)
