"""Float8, E4M3 or E5M2: one float32 scale for a tensor, an output channel, or a block of 128 channels and 128 inputs.

The scale is the largest magnitude over the largest element, as in torchao and DeepSeek-V3 (arXiv 2412.19437, section
3.3.2). The last blocks of rows and inputs may be narrower.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from quantwatt.formats.activations import StaticGrid, finite_range
from quantwatt.formats.float_activations import FloatActivations
from quantwatt.formats.float_format import FloatFormat
from quantwatt.formats.group_numbers import GroupNumbers
from quantwatt.formats.minifloat import ELEMENTS, Minifloat
from quantwatt.formats.weight_format import Grid

BLOCK = 128  # rows and columns


def scale_of(largest: torch.Tensor, elements: Minifloat) -> torch.Tensor:
    """Return the scale at which the largest magnitude is the largest element; 1 of zeros."""
    scale = largest.float() / elements.largest
    return torch.where(scale == 0, 1.0, scale)


@dataclass(frozen=True)
class Format(FloatFormat):
    """Settings of resources/schemas/formats/float8.schema.json."""

    element: str = "e4m3"
    granularity: str = "channel"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(settings["element"], settings["granularity"])

    @property
    def elements(self) -> Minifloat:
        return ELEMENTS[self.element]

    @property
    def shares_rows(self) -> bool:
        return self.granularity != "channel"

    def group_width(self, columns: int) -> int:
        return min(BLOCK, columns) if self.granularity == "block" else columns

    def block_rows(self, rows: int) -> int:
        """Return how many neighbouring rows share a scale."""
        return {"tensor": rows, "channel": 1, "block": BLOCK}[self.granularity]

    def fit(self, values: torch.Tensor) -> Grid:  # [rows, width] -> [rows, 1]
        largest = values.abs().amax(dim=1, keepdim=True)
        return scale_of(self._by_block(largest, torch.amax), self.elements), None

    def storable(self, scale: torch.Tensor) -> torch.Tensor:
        return scale

    def refit(self, codes: torch.Tensor, target: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Grid:
        if not self.shares_rows:
            return super().refit(codes, target, scale, zero)
        levels = self.decode(codes, 1.0, None)
        sums = ((levels * part).sum(dim=1, keepdim=True) for part in (target, levels))
        product, norm = (self._by_block(part, torch.sum) for part in sums)
        return torch.where((product > 0) & (norm > 0), product / norm, scale), None

    def _by_block(self, figures, reduce):
        """Reduce figures of rows [rows, 1] over the rows that share a scale, and give each row the result."""
        rows = len(figures)
        size = self.block_rows(rows)
        if size == 1:
            return figures
        padded = torch.nn.functional.pad(figures[:, 0], (0, -rows % size))  # with zeros, which change no figure
        return reduce(padded.reshape(-1, size), dim=1).repeat_interleave(size)[:rows, None]

    def pack_scale(self, scale: torch.Tensor, tensor_scale: torch.Tensor | None = None) -> torch.Tensor:
        return scale[:: self.block_rows(len(scale))].contiguous()

    def unpack_scale(self, stored: torch.Tensor, rows: int, tensor_scale: torch.Tensor | None = None) -> torch.Tensor:
        size = self.block_rows(rows)
        return stored if size == 1 else stored.repeat_interleave(size, dim=0)[:rows]

    def held_grid(
        self, scale: torch.Tensor, zero: torch.Tensor | None, tensor_scale: torch.Tensor | None = None
    ) -> tuple[GroupNumbers, None]:
        return GroupNumbers(self.pack_scale(scale), rows=self.block_rows(len(scale))), None

    def grid_bits(self, rows: int, columns: int) -> int:
        return super().grid_bits(-(-rows // self.block_rows(rows)), columns)


@dataclass(frozen=True)
class Activations(FloatActivations):
    """Settings of resources/schemas/activations/float8.schema.json.

    granularity: "token" (one scale per row of the input) or "tensor"; dynamic: the scale is computed at run time.
    """

    element: str = "e4m3"
    granularity: str = "token"
    dynamic: bool = True

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(settings["element"], settings["granularity"], settings["dynamic"])

    @property
    def elements(self) -> Minifloat:
        return ELEMENTS[self.element]

    def calibrated(self, observed: Any) -> StaticGrid:
        low, high = finite_range(observed)
        scale = scale_of(torch.maximum(-low, high), self.elements)[None]
        return scale, torch.zeros_like(scale)

    def fake_quantize(self, inputs: torch.Tensor, static: StaticGrid | None = None) -> torch.Tensor:
        tokens = inputs.reshape(-1, inputs.shape[-1]).float()
        scale = self._scale(tokens, static)
        return self.elements.round(tokens / scale).mul_(scale).to(inputs.dtype).reshape(inputs.shape)

    def encode(self, tokens: torch.Tensor, static: StaticGrid | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (codes uint8, scale [tokens, 1] or of all) of inputs [tokens, columns] float32."""
        scale = self._scale(tokens, static)
        return self.elements.encode(tokens / scale), scale

    def _scale(self, tokens, static):
        if not self.dynamic:
            if static is None:
                raise ValueError("a static format needs the grid that calibration has fixed")
            return static[0]
        if self.granularity == "token":
            return scale_of(tokens.abs().amax(dim=1, keepdim=True), self.elements)
        return scale_of(tokens.abs().amax(), self.elements)

    def inside(self, ratio: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return ratio.abs() <= self.elements.largest

    def at_run_time(self) -> Self:
        return self if self.dynamic else replace(self, granularity="tensor", dynamic=True)
