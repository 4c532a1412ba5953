"""Quantize a layer's input to integers, on a grid that is computed at run time or fixed by calibration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

TINY = torch.finfo(torch.float32).tiny

StaticGrid = tuple[torch.Tensor, torch.Tensor]  # scale and zero point, [1] each


@dataclass(frozen=True)
class ActivationFormat:
    """Settings of `activations` in resources/schemas/method.schema.json.

    bits: 2 to 8; granularity: "token" (one grid per row of the input) or "tensor"; dynamic: the grid is computed at run
    time; symmetric: no zero point.
    """

    bits: int
    granularity: str = "token"
    dynamic: bool = True
    symmetric: bool = True

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any] | None) -> Self | None:
        return None if settings is None else cls(**settings)

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
        """Return the static grid (scale [1], zero [1]) from a range observer, over all finite columns."""
        finite = observed.low.isfinite() & observed.high.isfinite()
        low, high = (part.where(finite, 0.0) for part in (observed.low, observed.high))
        scale, zero = self.grid(low.amin(), high.amax())
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
        """Quantize and dequantize: return the values of the integers, in the input's type and shape."""
        codes, scale, zero = self.encode(inputs.reshape(-1, inputs.shape[-1]), static)
        values = codes.float() if zero is None else codes.float() - zero
        return (values * scale).to(inputs.dtype).reshape(inputs.shape)
