"""One linear layer or convolution rounded to nearest by itself: the values of its formats, whatever computes them."""

import copy
from types import SimpleNamespace

import torch

from quantwatt.activations import ActivationFormat
from quantwatt.formats import load_format, quantize_to_nearest, stored_bits


def channels_last(layer, inputs):
    """A layer's inputs with their channels as the last dimension, [..., channels]."""
    return inputs.movedim(1, -1) if isinstance(layer, torch.nn.Conv2d) else inputs


def round_weight(weight, settings, parts=None):
    """A weight [rows, columns, ...] rounded to nearest.

    Args:
        settings: a completed `weights` entry.
        parts: input channels of each part that has grids of its own, or None.
    """
    weight_format, rounded = load_format(settings), []
    for own in weight.float().split(parts or weight.shape[1], dim=1):
        matrix = own.flatten(1)
        rounded.append(quantize_to_nearest(matrix, weight_format).dequantize(weight_format).reshape(own.shape))
    return torch.cat(rounded, dim=1).to(weight.dtype)


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
    observed: `range` statistics of its input channels, for a static grid.
    parts: channels of each part of the input that has grids of its own, or None.
    keep_first: whether the first token goes through the float layer.
    """

    def __init__(self, layer, formats, observed=None, parts=None, keep_first=False):
        super().__init__()
        self.float_layer, self.rounded = layer, layer
        self.parts, self.keep_first = list(parts) if parts else None, keep_first
        if formats["weights"]:
            self.rounded = copy.copy(layer)
            rounded = round_weight(layer.weight.detach(), formats["weights"], self.parts)
            self.rounded._parameters = {**layer._parameters, "weight": torch.nn.Parameter(rounded, requires_grad=False)}
        self.activation_format = ActivationFormat.from_settings(formats["activations"])
        self.grids = self._grids(observed) if self.activation_format and not self.activation_format.dynamic else None

    def _grids(self, observed):
        """The static grid of each part of the input."""
        sizes = self.parts or len(observed.low)
        pairs = zip(observed.low.split(sizes), observed.high.split(sizes), strict=True)
        return [self.activation_format.calibrated(SimpleNamespace(low=low, high=high)) for low, high in pairs]

    def forward(self, inputs):
        if not self.keep_first:
            return self.rounded(self._seen(inputs))
        first, rest = self.float_layer(inputs[:, :1]), self.rounded(self._seen(inputs[:, 1:]))
        return torch.cat([first, rest], dim=1)

    def _seen(self, inputs):
        """What the product sees of the inputs."""
        if self.activation_format is None:
            return inputs
        parts = inputs.split(self.parts, dim=1) if self.parts else [inputs]
        grids = self.grids or [None] * len(parts)
        return torch.cat([self._quantize(part, grid) for part, grid in zip(parts, grids, strict=True)], dim=1)

    def _quantize(self, inputs, grid):
        # A convolution's "token" is a whole image.
        rows = inputs.flatten(1) if isinstance(self.float_layer, torch.nn.Conv2d) else inputs
        return self.activation_format.fake_quantize(rows, grid).reshape(inputs.shape)
