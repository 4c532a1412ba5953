"""Quantized layers that replace torch.nn.Linear or torch.nn.Conv2d; only the simulated layer holds a float weight.

The layers that compute in a format are in quantwatt.inference.kernels; kernel_choice.py chooses among them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch

from quantwatt.formats import convolution, rotation
from quantwatt.formats.activations import ActivationFormat, StaticGrid
from quantwatt.formats.quantized_weight import QuantizedWeight
from quantwatt.formats.weight_format import WeightFormat


class QuantizedLinear(torch.nn.Module):
    """Base class of quantized layers: everything except the product.

    It scales and rotates the input before the product, adds the low-rank branch after it, and inserts the stored output
    of the first token.

    A subclass stores the weight (`_hold`), multiplies by it and adds the bias (`_product`).
    """

    in_features: int
    out_features: int
    geometry: convolution.Convolution | None
    activation_format: ActivationFormat | None
    product_only: bool
    call: Any  # of C, which holds addresses of the layer's tensors; None: made at the next product
    absent_weight: torch.nn.Parameter
    bias: torch.Tensor | None
    input_factor: torch.Tensor | None
    block: int | None  # of the rotation of inputs
    rotated_factor: torch.Tensor | None
    rotate: Callable[..., torch.Tensor]  # `rotation.rotated`, or what computes it faster
    down: torch.Tensor | None
    up: torch.Tensor | None
    first_output: torch.Tensor | None
    activation_scale: torch.Tensor | None
    activation_zero: torch.Tensor | None

    @classmethod
    def build(
        cls,
        quantized: QuantizedWeight,
        weight_format: WeightFormat,
        activations: Mapping[str, Any] | None,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        geometry: convolution.Convolution | None = None,
    ) -> Self:
        """Build a layer on the CPU.

        Args:
            quantized: QuantizedWeight.
            activations: completed `activations` settings of a method, or None.
            bias: [rows] or None.
            dtype: of the layer's inputs and outputs.
            geometry: Convolution, or None for a linear layer.
        """
        layer = cls()
        layer.geometry, layer.call = geometry, None
        layer.in_features, layer.out_features = quantized.codes.shape[1], quantized.codes.shape[0]
        layer.activation_format = ActivationFormat.from_settings(activations)
        layer._buffer("bias", bias, dtype)
        before, after = quantized.input_factor, quantized.rotated_factor
        layer.block = None if quantized.rotation is None else int(quantized.rotation)
        layer.rotate = rotation.rotated
        if layer.block is not None:
            before, after = (None if factor is None else factor.float() for factor in (before, after))
        layer._buffer("input_factor", before, dtype if layer.block is None else torch.float32)
        layer._buffer("rotated_factor", after, torch.float32)
        layer._buffer("down", quantized.down, dtype)
        layer._buffer("up", quantized.up, dtype)
        first = quantized.first_output
        if first is not None and bias is not None:
            first = first + bias.float().to(first.device)
        layer._buffer("first_output", first, dtype)
        layer._buffer("activation_scale", quantized.activation_scale, torch.float32)
        layer._buffer("activation_zero", quantized.activation_zero, torch.float32)
        # Models read a module's dtype and device from its first parameter, so the layer needs one.
        layer.absent_weight = torch.nn.Parameter(torch.tensor(torch.nan, dtype=dtype), requires_grad=False)
        extras = layer.first_output, layer.input_factor, layer.block, layer.down
        layer.product_only = all(part is None for part in extras)
        layer._hold(quantized, weight_format, dtype)
        return layer

    def _buffer(self, name, tensor, dtype):
        persistent = name == "bias"  # the checkpoint stores all other parts packed
        self.register_buffer(name, None if tensor is None else tensor.detach().to(dtype), persistent=persistent)

    def _apply(self, fn, recurse=True):
        self.call = None
        return super()._apply(fn, recurse)

    def __getstate__(self):
        return {**self.__dict__, "call": None}

    def _hold(self, quantized, weight_format, dtype) -> None:
        raise NotImplementedError

    def _product(self, inputs) -> torch.Tensor:
        raise NotImplementedError

    @property
    def weight(self) -> torch.Tensor:
        """Return NaN in the weight's shape, dtype and device, all that models read; it has memory for one element."""
        weight = self.absent_weight.expand(self.out_features, self.in_features)
        return weight if self.geometry is None else self.geometry.unfolded(weight)

    @property
    def static_grid(self) -> StaticGrid | None:
        return None if self.activation_scale is None else (self.activation_scale, self.activation_zero)  # ty: ignore

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.product_only:  # the lookup of each buffer would take a microsecond
            return self._product(inputs)
        if self.first_output is not None:
            inputs = inputs[:, 1:]
        if self.block is not None:
            inputs = self.rotate(inputs, self.block, self.input_factor, self.rotated_factor)
        elif self.input_factor is not None:
            inputs = inputs * self.input_factor
        outputs = self._product(inputs)
        if self.down is not None:
            outputs = outputs + inputs @ self.down.T @ self.up.T  # ty: ignore[missing-union-attribute]  (both or neither)
        if self.first_output is not None:
            outputs = torch.cat([self.first_output.expand(len(outputs), 1, -1), outputs], dim=1)
        return outputs


class SimulatedLinear(QuantizedLinear):
    """Fake-quantized layer: the format's values in a 16-bit product. Its outputs are right, its cost says nothing."""

    values: torch.Tensor

    def _hold(self, quantized, weight_format, dtype):
        self._buffer("values", quantized.dequantize(weight_format), dtype)

    def _product(self, inputs):
        if self.activation_format is not None:
            inputs = convolution.rounded(inputs, self.activation_format, self.static_grid, self.geometry)
        return convolution.product(inputs, self.values, self.bias, self.geometry)
