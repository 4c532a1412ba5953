"""Quantize a layer's input to integers, on a grid that is computed at run time or fixed by calibration.

Inputs may also be floats: the modules of weight formats that have them (mxfp8.py, nvfp4.py, ...) hold these formats.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch

from quantwatt import registry

TINY = torch.finfo(torch.float32).tiny

StaticGrid = tuple[torch.Tensor, torch.Tensor]  # scale and zero point, [1] each


class ActivationFormat(ABC):
    """How the inputs of a layer are quantized."""

    bits: int  # of one value
    dynamic: bool  # no part of the grid is fixed by calibration
    block_size: ClassVar[int | None] = None  # neighbouring inputs of a token that share a scale; None: no blocks

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any] | None) -> "ActivationFormat | None":
        """Create the format of a completed `activations` entry; an entry without `format` is of integers."""
        if settings is None:
            return None
        if "format" in settings:
            return registry.load("formats", settings["format"]).Activations.of_settings(settings)
        return IntegerActivations(**settings)

    @abstractmethod
    def calibrated(self, observed: Any) -> StaticGrid:
        """Return the static grid (scale [1], zero [1]) from a range observer, over all finite columns."""

    @abstractmethod
    def fake_quantize(self, inputs: torch.Tensor, static: StaticGrid | None = None) -> torch.Tensor:
        """Quantize and dequantize inputs [..., columns]: return their values, in the same type and shape.

        Args:
            static: (scale [1], zero [1]) of a format that is not dynamic.
        """

    @abstractmethod
    def inside(self, ratio: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Return which inputs lie inside of a static grid, bool: inputs over its scale, and these once rounded."""

    @abstractmethod
    def at_run_time(self) -> Self:
        """Return the format with its static grid, if it has one, computed of each tensor."""


@dataclass(frozen=True)
class IntegerActivations(ActivationFormat):
    """Settings of resources/schemas/activations/integer.schema.json.

    bits: 2 to 8; granularity: "token" (one grid per row of the input) or "tensor"; dynamic: the grid is computed at run
    time; symmetric: no zero point.
    """

    bits: int
    granularity: str = "token"
    dynamic: bool = True
    symmetric: bool = True

    @property
    def lowest(self) -> int:
        return -(2 ** (self.bits - 1)) + (1 if self.symmetric else 0)

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def grid(self, low: torch.Tensor, high: torch.Tensor) -> StaticGrid:
        """Return (scale, zero) float32 of a range, widened to contain 0; zero is 0 where symmetric."""
        if self.symmetric:
            largest = torch.maximum(-low, high).float()
            return largest.clamp(min=TINY) / self.highest, torch.zeros_like(largest)
        low, high = low.float().clamp(max=0), high.float().clamp(min=0)
        scale = (high - low).clamp(min=TINY) / (self.highest - self.lowest)
        return scale, torch.round(self.lowest - low / scale)

    def calibrated(self, observed: Any) -> StaticGrid:
        scale, zero = self.grid(*finite_range(observed))
        return scale[None], zero[None]

    def encode(
        self, inputs: torch.Tensor, static: StaticGrid | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Quantize inputs: return the integers and their grid.

        Args:
            inputs: [tokens, columns], any floating type.
            static: (scale [1], zero [1]) of a format that is not dynamic.
        Returns:
            (codes [tokens, columns] int8, scale, zero), both [tokens, 1] or [1, 1] float32; zero is None where
            symmetric.
        """
        if not self.dynamic:
            if static is None:
                raise ValueError("a static format needs the grid that calibration has fixed")
            scale, zero = (part.reshape(1, 1) for part in static)
        elif self.granularity == "token":
            scale, zero = self.grid(inputs.amin(dim=1, keepdim=True), inputs.amax(dim=1, keepdim=True))
        else:
            scale, zero = (part.reshape(1, 1) for part in self.grid(inputs.amin(), inputs.amax()))
        codes = torch.round(inputs.float() / scale)
        if not self.symmetric:
            codes += zero
        return codes.clamp_(self.lowest, self.highest).to(torch.int8), scale, None if self.symmetric else zero

    def fake_quantize(self, inputs: torch.Tensor, static: StaticGrid | None = None) -> torch.Tensor:
        codes, scale, zero = self.encode(inputs.reshape(-1, inputs.shape[-1]), static)
        values = codes.float() if zero is None else codes.float() - zero
        return (values * scale).to(inputs.dtype).reshape(inputs.shape)

    def inside(self, ratio: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return (level - ratio).abs() <= 0.5 + 1e-3

    def at_run_time(self) -> Self:
        return self if self.dynamic else replace(self, granularity="tensor", dynamic=True)


def finite_range(observed: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest and the largest input, scalars, that a range observer saw in columns that are finite."""
    finite = observed.low.isfinite() & observed.high.isfinite()
    low, high = (part.where(finite, 0.0) for part in (observed.low, observed.high))
    return low.amin(), high.amax()
