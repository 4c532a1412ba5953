"""Two-dimensional convolutions as matrix products, so that every solver takes them for linear layers.

The weight is a matrix [rows, columns] with one row per output channel; columns = in_channels / groups * kernel height *
width. What meets it are the input's patches: one row per position of the kernel, and apart for every group of channels.
"""

from dataclasses import dataclass, fields

import torch

from quantwatt.manifest import DataError


@dataclass(frozen=True)
class Convolution:
    """kernel_size, stride, padding, dilation: (vertical, horizontal); groups: of channels."""

    kernel_size: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int

    @classmethod
    def of(cls, layer):
        """The geometry of a Conv2d, or None of a linear layer.

        Raises:
            DataError: it pads with something else than zeros, or unevenly.
        """
        if not isinstance(layer, torch.nn.Conv2d):
            return None
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        padding = {"valid": (0, 0), "same": tuple(r // 2 for r in reach)}.get(layer.padding, layer.padding)
        if layer.padding_mode != "zeros" or (layer.padding == "same" and any(r % 2 for r in reach)):
            raise DataError("a convolution that pads with something else than zeros, or unevenly, is not known.")
        return cls(layer.kernel_size, layer.stride, padding, layer.dilation, layer.groups)

    @classmethod
    def from_settings(cls, layer):
        """The geometry that a layer of a manifest has, or None."""
        if "kernel_size" not in layer:
            return None
        return cls(**{f.name: layer[f.name] if f.name == "groups" else tuple(layer[f.name]) for f in fields(cls)})

    def settings(self):
        """The inverse of `from_settings`."""
        return {f.name: self.groups if f.name == "groups" else list(getattr(self, f.name)) for f in fields(self)}

    def patches(self, inputs):
        """Inputs [samples, channels, height, width] as one [positions, columns] for every group."""
        unfolded = torch.nn.functional.unfold(inputs, self.kernel_size, self.dilation, self.padding, self.stride)
        return [part.transpose(1, 2).flatten(0, 1) for part in unfolded.chunk(self.groups, dim=1)]

    def product(self, inputs, weight, bias=None):
        """Outputs [samples, rows, height, width] of a weight [rows, columns]."""
        weight = self.unfolded(weight)
        return torch.nn.functional.conv2d(inputs, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def unfolded(self, weight):
        """A weight [rows, columns] as the convolution has it: [rows, in_channels / groups, height, width]."""
        return weight.reshape(len(weight), -1, *self.kernel_size)


def describe(layer):
    """What a manifest says of a linear or convolution layer: in_features (columns), out_features (rows), geometry."""
    geometry = Convolution.of(layer)
    shape = {"in_features": layer.weight[0].numel(), "out_features": len(layer.weight)}
    return shape if geometry is None else {**shape, **geometry.settings()}


def product(inputs, weight, bias, geometry):
    """Outputs of a linear layer, or of a convolution where there is a geometry."""
    if geometry is None:
        return torch.nn.functional.linear(inputs, weight, bias)
    return geometry.product(inputs, weight, bias)


def rounded(inputs, activation_format, grid, geometry):
    """Inputs as an activation format has them; a "token" of a convolution is an image."""
    if geometry is None:
        return activation_format.fake_quantize(inputs, grid)
    return activation_format.fake_quantize(inputs.flatten(1), grid).reshape(inputs.shape)
