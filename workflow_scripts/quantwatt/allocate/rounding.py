"""Round one linear layer or convolution to nearest (fake-quantized values, independent of any kernel)."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from quantwatt.formats import convolution
from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.convolution import Convolution
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest, stored_bits

if TYPE_CHECKING:
    from quantwatt.quantize.observers import Range


def round_weight(weight: torch.Tensor, settings: Mapping[str, Any]) -> torch.Tensor:
    """Round a weight [rows, columns, ...] to nearest in the format of a completed `weights` entry."""
    weight_format = load_format(settings)
    rounded = quantize_to_nearest(weight.float().flatten(1), weight_format).dequantize(weight_format)
    return rounded.reshape(weight.shape).to(weight.dtype)


def megabytes(weight: torch.Tensor, settings: Mapping[str, Any] | None) -> float:
    """Return the size of a packed weight with scales and zero points in MB; unquantized if settings is None."""
    if settings is None:
        return weight.numel() * weight.element_size() / 1e6
    columns = weight[0].numel()
    return stored_bits(len(weight), columns, load_format(settings)) * weight.numel() / 8 / 1e6


class RoundedLayer(torch.nn.Module):
    """A layer that computes with a rounded weight and quantized inputs.

    layer: float torch.nn.Linear or Conv2d; not changed.
    formats: {"weights", "activations"}, completed settings or None.
    observed: `range` observer of the layer's inputs, for a static grid.
    keep_first: whether the first token goes through the float layer.
    """

    def __init__(
        self,
        layer: torch.nn.Linear | torch.nn.Conv2d,
        formats: Mapping[str, Any],
        observed: "Range | None" = None,
        keep_first: bool = False,
    ):
        super().__init__()
        self.float_layer = self.rounded = layer
        self.geometry, self.keep_first = Convolution.of(layer), keep_first
        if formats["weights"]:
            weight = round_weight(layer.weight.detach(), formats["weights"])
            self.rounded = copy.copy(layer)
            self.rounded._parameters = {**layer._parameters, "weight": torch.nn.Parameter(weight, requires_grad=False)}
        self.activation_format = ActivationFormat.from_settings(formats["activations"])
        static = self.activation_format is not None and not self.activation_format.dynamic
        self.grid = self.activation_format.calibrated(observed) if static else None

    def __getattr__(self, name):
        """Return the float layer's attributes, which pipelines read (in_features, the dtype of the weight)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("float_layer"), name)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self.keep_first:
            return self.rounded(self._seen(inputs))
        first, rest = self.float_layer(inputs[:, :1]), self.rounded(self._seen(inputs[:, 1:]))
        return torch.cat([first, rest], dim=1)

    def _seen(self, inputs):
        """Return the inputs as the product gets them: fake-quantized if the layer has an activation format."""
        if self.activation_format is None:
            return inputs
        return convolution.rounded(inputs, self.activation_format, self.grid, self.geometry)
