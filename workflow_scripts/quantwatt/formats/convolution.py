"""Two-dimensional convolutions as matrix products, so that every solver can handle them like linear layers.

The weight is a matrix [rows, columns] with one row per output channel; columns = in_channels / groups * kernel height *
width. It is multiplied by the input's patches, one row per position of the kernel, separately for each channel group.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch

from quantwatt.formats.activations import ActivationFormat, StaticGrid


@dataclass(frozen=True)
class Convolution:
    """The geometry of a convolution.

    kernel_size, stride, dilation: (vertical, horizontal).
    padding: (left, right, top, bottom).
    padding_mode: "zeros", "circular", "reflect" or "replicate".
    groups: number of channel groups.
    """

    kernel_size: tuple
    stride: tuple
    padding: tuple
    padding_mode: str
    dilation: tuple
    groups: int

    @classmethod
    def of(cls, layer: torch.nn.Module) -> Self | None:
        """Return the geometry of a Conv2d, or None for a linear layer."""
        if not isinstance(layer, torch.nn.Conv2d):
            return None
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if layer.padding == "same":  # as in PyTorch: if odd, one more at the bottom or right
            top, left = (r // 2 for r in reach)
            bottom, right = (r - r // 2 for r in reach)
        else:
            top, left = bottom, right = (0, 0) if layer.padding == "valid" else layer.padding
        padding = (left, right, top, bottom)
        return cls(layer.kernel_size, layer.stride, padding, layer.padding_mode, layer.dilation, layer.groups)

    @classmethod
    def from_settings(cls, layer: Mapping[str, Any]) -> Self | None:
        """Read the geometry of a layer in a manifest; None for a linear layer."""
        if "kernel_size" not in layer:
            return None
        values = {f.name: layer[f.name] for f in fields(cls)}
        geometry: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**geometry)

    def settings(self) -> dict[str, Any]:
        """Return the inverse of `from_settings`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def patches(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """Unfold inputs [samples, channels, height, width] to patches: [positions, columns] for each group."""
        inputs, zeros = self.padded(inputs)
        unfolded = torch.nn.functional.unfold(inputs, self.kernel_size, self.dilation, zeros, self.stride)
        return [part.transpose(1, 2).flatten(0, 1) for part in unfolded.chunk(self.groups, dim=1)]

    def product(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve with a weight [rows, columns]: return [samples, rows, height, width]."""
        inputs, zeros = self.padded(inputs)
        weight = self.unfolded(weight)
        return torch.nn.functional.conv2d(inputs, weight, bias, self.stride, zeros, self.dilation, self.groups)

    def padded(self, inputs: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the padded inputs, and the zero padding (vertical, horizontal) that is left to PyTorch's functions."""
        left, right, top, bottom = self.padding
        zeros = self.padding_mode == "zeros"
        if zeros and (left, top) == (right, bottom):
            return inputs, (top, left)
        mode = "constant" if zeros else self.padding_mode
        return torch.nn.functional.pad(inputs, self.padding, mode), (0, 0)

    def unfolded(self, weight: torch.Tensor) -> torch.Tensor:
        """Reshape a weight [rows, columns] to the convolution's: [rows, in_channels / groups, height, width]."""
        return weight.reshape(len(weight), -1, *self.kernel_size)


def describe(layer: torch.nn.Linear | torch.nn.Conv2d) -> dict[str, Any]:
    """Describe a linear or convolution layer for a manifest: in_features (columns), out_features (rows), geometry."""
    geometry = Convolution.of(layer)
    shape = {"in_features": layer.weight[0].numel(), "out_features": len(layer.weight)}
    return shape if geometry is None else {**shape, **geometry.settings()}


def product(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, geometry: Convolution | None
) -> torch.Tensor:
    """Return the outputs of a linear layer, or of a convolution if there is a geometry."""
    if geometry is None:
        return torch.nn.functional.linear(inputs, weight, bias)
    return geometry.product(inputs, weight, bias)


def positions(inputs: torch.Tensor, geometry: Convolution | None) -> torch.Tensor:
    """Flatten inputs to [tokens, columns], or a convolution's inputs to [positions, channels], without patches."""
    return inputs.flatten(0, -2) if geometry is None else inputs.movedim(1, -1).flatten(0, -2)


def rounded(
    inputs: torch.Tensor,
    activation_format: ActivationFormat,
    grid: StaticGrid | None,
    geometry: Convolution | None,
) -> torch.Tensor:
    """Fake-quantize inputs with an activation format; a "token" of a convolution is an image.

    Blocks are of neighbouring channels of a position, which the product sums over.
    """
    if geometry is None:
        return activation_format.fake_quantize(inputs, grid)
    if activation_format.block_size is not None:
        return activation_format.fake_quantize(inputs.movedim(1, -1), grid).movedim(-1, 1)
    return activation_format.fake_quantize(inputs.flatten(1), grid).reshape(inputs.shape)
