"""Formats whose elements are small floats: what float8, MX and NVFP4 have in common.

A value is an element times its block's scale. The formats differ in their elements, in the blocks that share a scale,
and in which scales there are: `storable` rounds a scale to one of them.
"""

from abc import abstractmethod

import torch

from quantwatt.formats.fitting import least_squares_scale
from quantwatt.formats.minifloat import Minifloat
from quantwatt.formats.weight_format import Grid, WeightFormat


class FloatFormat(WeightFormat):
    """A format of floating-point elements; a block is one or more rows, times a group of inputs."""

    zero_dtype = None

    @property
    @abstractmethod
    def elements(self) -> Minifloat:
        """The floating-point numbers that codes stand for."""

    @abstractmethod
    def storable(self, scale: torch.Tensor) -> torch.Tensor:
        """Return the scale that the format can store nearest to each scale, float32 as the scales are."""

    @property
    def bits(self) -> int:
        return self.elements.bits

    @property
    def codebook(self) -> torch.Tensor:
        return self.elements.values()

    def encode(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        return self.elements.encode(self.scaled(values, scale))

    def snap(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        return self.elements.round(self.scaled(values, scale)).mul_(scale)

    def bracket(
        self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.elements.bracket(self.scaled(values, scale))

    def decode(self, codes: torch.Tensor, scale: torch.Tensor | float, zero: torch.Tensor | None) -> torch.Tensor:
        values = self.elements.values(codes.device)
        return values.index_select(0, codes.flatten().int()).view(codes.shape) * scale

    def scaled(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Return values divided by their scales, in the format's own arithmetic."""
        return values / scale

    def refit(self, codes: torch.Tensor, target: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Grid:
        # The squared error is a parabola in the scale, so the nearest scale is the best of those that can be stored.
        return self.storable(least_squares_scale(self.decode(codes, 1.0, None), target, scale)), None
