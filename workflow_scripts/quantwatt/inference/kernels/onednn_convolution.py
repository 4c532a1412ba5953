"""Convolutions with integer weights per output channel and integer inputs: oneDNN's int8 convolution."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from quantwatt.formats.convolution import Convolution
from quantwatt.inference import fused
from quantwatt.inference.kernels import onednn_int8

NAME, PACKAGE, BOUND = "oneDNN int8 convolution", "torch", onednn_int8.BOUND
MULTIPLE = 4  # of channels per group; for others, oneDNN's reference code is 10 to 80 times slower than float


def refusal(layer: Mapping[str, Any], device: str) -> str | None:
    if "kernel_size" not in layer:
        return "takes convolutions only"
    if reason := onednn_int8.inexpressible(layer):
        return reason
    inputs = layer["in_features"] // math.prod(layer["kernel_size"])  # channels per group
    outputs = layer["out_features"] // layer["groups"]
    if layer["groups"] > 1 and (inputs, outputs) != (1, 1) and (inputs % MULTIPLE or outputs % MULTIPLE):
        return f"takes groups of channels in multiples of {MULTIPLE}, or of one"
    return None


class Layer(onednn_int8.Int8Layer):
    geometry: Convolution
    around: tuple[Any, ...]

    def _hold(self, quantized, weight_format, dtype):
        integers = onednn_int8.hold(self, quantized, weight_format)
        geometry = self.geometry
        self.around = (geometry.stride, (0, 0), geometry.dilation, geometry.groups)  # quantizing pads the inputs
        weight = integers.reshape(self.out_features, -1, *geometry.kernel_size)
        packed = torch.ops.onednn.qconv_prepack(weight, self.one, 1.0, 0, *self.around, None)
        self.register_buffer("packed", packed, persistent=False)

    def _product(self, inputs):
        padded, zeros = self.geometry.padded(inputs)
        images = padded.permute(0, 2, 3, 1)  # oneDNN reads channels-last bytes
        codes, scale, zero = fused.quantize(images, self.activation_format, self.static_grid, self.halves, zeros)
        sums = torch.ops.onednn.qconv_pointwise(
            *(codes.permute(0, 3, 1, 2), 1.0, 0, self.packed, self.one, self.none, None, *self.around),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        lowest = self.activation_format.lowest
        outputs = fused.rescale(
            *(sums.permute(0, 2, 3, 1), scale, zero, lowest, self.scale, self.sums, self.offset),
            *(inputs.dtype, self.halves),
        )
        return outputs.permute(0, 3, 1, 2)
