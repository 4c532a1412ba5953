"""Quantized layers in place of torch.nn.Linear or torch.nn.Conv2d; the simulated one alone holds a float weight.

Those that compute in a format are in quantwatt.inference.kernel_choice.
"""

import torch

from quantwatt.formats import convolution
from quantwatt.formats.activations import ActivationFormat


class QuantizedLinear(torch.nn.Module):
    """What every quantized layer does around its product.

    It scales the input before, adds the low-rank branch after, and puts in what is known of the first token.

    A subclass keeps the weight (`_hold`) and multiplies by it, bias included (`_product`).
    """

    @classmethod
    def build(cls, quantized, weight_format, activations, bias, dtype, geometry=None):
        """A layer on the CPU.

        Args:
            quantized: QuantizedWeight.
            activations: completed `activations` settings of a method, or None.
            bias: [rows] or None.
            dtype: of the layer's inputs and outputs.
            geometry: Convolution, or None of a linear layer.
        """
        layer = cls()
        layer.geometry = geometry
        layer.in_features, layer.out_features = quantized.codes.shape[1], quantized.codes.shape[0]
        layer.activation_format = ActivationFormat.from_settings(activations)
        layer._buffer("bias", bias, dtype)
        layer._buffer("input_factor", quantized.input_factor, dtype)
        layer._buffer("down", quantized.down, dtype)
        layer._buffer("up", quantized.up, dtype)
        first = quantized.first_output
        if first is not None and bias is not None:
            first = first + bias.float().to(first.device)
        layer._buffer("first_output", first, dtype)
        layer._buffer("activation_scale", quantized.activation_scale, torch.float32)
        layer._buffer("activation_zero", quantized.activation_zero, torch.float32)
        # A parameter, for models ask the type and the device of a part of theirs of its first one.
        layer.absent_weight = torch.nn.Parameter(torch.tensor(torch.nan, dtype=dtype), requires_grad=False)
        layer._hold(quantized, weight_format, dtype)
        return layer

    def _buffer(self, name, tensor, dtype):
        persistent = name == "bias"  # all else is in the checkpoint in the format's own form
        self.register_buffer(name, None if tensor is None else tensor.detach().to(dtype), persistent=persistent)

    @property
    def weight(self):
        """NaN in the weight's shape and type and on its device, which is all that models ask of it; of one element."""
        weight = self.absent_weight.expand(self.out_features, self.in_features)
        return weight if self.geometry is None else self.geometry.unfolded(weight)

    @property
    def static_grid(self):
        return None if self.activation_scale is None else (self.activation_scale, self.activation_zero)

    def forward(self, inputs):
        if self.first_output is not None:
            inputs = inputs[:, 1:]
        if self.input_factor is not None:
            inputs = inputs * self.input_factor
        outputs = self._product(inputs)
        if self.down is not None:
            outputs = outputs + inputs @ self.down.T @ self.up.T
        if self.first_output is not None:
            outputs = torch.cat([self.first_output.expand(len(outputs), 1, -1), outputs], dim=1)
        return outputs


class SimulatedLinear(QuantizedLinear):
    """Values of the format in a 16-bit matrix product: right results, meaningless cost."""

    def _hold(self, quantized, weight_format, dtype):
        self._buffer("values", quantized.dequantize(weight_format), dtype)

    def _product(self, inputs):
        if self.activation_format is not None:
            inputs = convolution.rounded(inputs, self.activation_format, self.static_grid, self.geometry)
        return convolution.product(inputs, self.values, self.bias, self.geometry)
