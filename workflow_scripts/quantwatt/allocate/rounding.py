"""One linear layer or convolution rounded to nearest by itself: the values of its formats, whatever computes them."""

import copy

import torch

from quantwatt.formats import convolution
from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.convolution import Convolution
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest, stored_bits


def round_weight(weight, settings):
    """A weight [rows, columns, ...] rounded to nearest in a completed `weights` entry's format."""
    weight_format = load_format(settings)
    rounded = quantize_to_nearest(weight.float().flatten(1), weight_format).dequantize(weight_format)
    return rounded.reshape(weight.shape).to(weight.dtype)


def megabytes(weight, settings):
    """What a weight takes, packed with its scales and zero points; unquantized where settings is None."""
    if settings is None:
        return weight.numel() * weight.element_size() / 1e6
    columns = weight[0].numel()
    return stored_bits(len(weight), columns, load_format(settings)) * weight.numel() / 8 / 1e6


class RoundedLayer(torch.nn.Module):
    """A float layer with its weight rounded and its inputs quantized.

    layer: torch.nn.Linear or Conv2d, which stays as it is.
    formats: {"weights", "activations"}, completed settings or None.
    observed: `range` statistics of its inputs, for a static grid.
    keep_first: whether the first token goes through the float layer.
    """

    def __init__(self, layer, formats, observed=None, keep_first=False):
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
        """What pipelines read of a layer, such as in_features or its weight's type, is the float layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("float_layer"), name)

    def forward(self, inputs):
        if not self.keep_first:
            return self.rounded(self._seen(inputs))
        first, rest = self.float_layer(inputs[:, :1]), self.rounded(self._seen(inputs[:, 1:]))
        return torch.cat([first, rest], dim=1)

    def _seen(self, inputs):
        """What the product sees of the inputs."""
        if self.activation_format is None:
            return inputs
        return convolution.rounded(inputs, self.activation_format, self.grid, self.geometry)
