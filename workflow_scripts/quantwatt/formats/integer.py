"""Integer grid of `bits` bits, symmetric or asymmetric, per tensor, output channel or group of inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from quantwatt.formats.fitting import clip_factor, least_squares_scale
from quantwatt.formats.weight_format import Grid, WeightFormat


@dataclass(frozen=True)
class Format(WeightFormat):
    """Settings of resources/schemas/formats/integer.schema.json.

    Asymmetric: value = (code - zero) * scale. With an integer zero point, the range is widened to contain 0, so that 0
    is exact. With a float zero point (HQQ, https://mobiusml.github.io/hqq_blog), the grid spans the values' range.
    Symmetric: zero is the fixed code 2**(bits-1). The narrow grid has the integers from -(2**(bits-1) - 1) to
    2**(bits-1) - 1; with 8 bits, from -127 to 127. The wide grid (`narrow` false) has one more integer below zero; its
    step is the range of the values, 2·max|w|, over 2**bits - 1, as in GPTQ's libraries.
    """

    bits: int
    granularity: str = "channel"
    group_size: int | None = None
    symmetric: bool = False
    narrow: bool = True
    zero_point: str = "integer"
    clip_search: bool = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        optional = ("symmetric", "narrow", "zero_point", "clip_search")
        return cls(
            settings["bits"],
            settings["granularity"],
            settings["group_size"],
            **{key: settings[key] for key in optional if key in settings},
        )

    @property
    def of_one_layer(self) -> bool:
        return self.granularity == "tensor"

    @property
    def float_zero(self) -> bool:
        """Whether the zero point is a float, which may lie between codes."""
        return not self.symmetric and self.zero_point == "float"

    @property
    def zero_dtype(self) -> torch.dtype | None:
        return None if self.symmetric else torch.float32 if self.float_zero else torch.uint8

    @property
    def middle(self) -> int:
        """Code of 0 in a symmetric grid."""
        return 2 ** (self.bits - 1)

    @property
    def lowest(self) -> int:
        """Smallest code."""
        return 1 if self.symmetric and self.narrow else 0

    @property
    def highest(self) -> int:
        """Largest code."""
        return 2**self.bits - 1

    def group_width(self, columns: int) -> int:
        if self.granularity != "group" or self.group_size is None:
            return columns
        return min(self.group_size, columns)

    def fit(self, values: torch.Tensor) -> Grid:  # [rows, width] -> [rows, 1]
        if self.granularity == "tensor":
            low, high = values.amin().expand(len(values), 1), values.amax().expand(len(values), 1)
        else:
            low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        elif not self.float_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        if self.clip_search:
            shared = self.granularity == "tensor"
            factor = clip_factor(values, self, lambda factor: self._grid(low * factor, high * factor), shared)
            low, high = low * factor, high * factor
        return self._grid(low, high)

    def _grid(self, low, high):
        """Return (scale, zero) of a range; NaN at an end makes the scale NaN, so that it is noticed."""
        scale = (high - low) / (self.highest - self.lowest)
        scale = torch.where(scale == 0, 1.0, scale)
        return scale, None if self.symmetric else self._stored(-low / scale)

    def _stored(self, zero):
        """Convert a zero point to the type in which it is stored."""
        return zero if self.float_zero else zero.round().clamp_(0, self.highest).to(torch.uint8)

    def _coded(self, values, scale, zero, rounding):
        """Return codes as floats, rounded before an integer zero point is added (as in GPTQ), or after a float one."""
        if self.float_zero:
            return rounding((values / scale).add_(zero))
        return rounding(values / scale).add_(self.middle if zero is None else zero)

    def encode(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        return self._coded(values, scale, zero, torch.round).clamp_(self.lowest, self.highest).to(torch.uint8)

    def snap(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        codes = self._coded(values, scale, zero, torch.round_).clamp_(self.lowest, self.highest)
        return codes.sub_(self.middle if zero is None else zero).mul_(scale)

    def bracket(
        self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        below = self._coded(values, scale, zero, torch.floor)
        low, high = below.clamp(self.lowest, self.highest), (below + 1).clamp_(self.lowest, self.highest)
        return low.to(torch.uint8), high.to(torch.uint8)

    def decode(self, codes: torch.Tensor, scale: torch.Tensor | float, zero: torch.Tensor | None) -> torch.Tensor:
        return (codes.float() - (self.middle if zero is None else zero)) * scale

    def refit(self, codes: torch.Tensor, target: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Grid:
        shared = self.granularity == "tensor"
        if zero is not None:
            distance = codes - target / scale  # zero point at which each code would give its target
            mean = distance.mean() if shared else distance.mean(dim=1, keepdim=True)
            zero = self._stored(mean.expand(zero.shape))
            if self.float_zero:
                return scale, zero
        # Rounding mostly leaves an integer zero point unchanged, so the scale is fitted after it.
        return least_squares_scale(self.decode(codes, 1.0, zero), target, scale, shared), zero
