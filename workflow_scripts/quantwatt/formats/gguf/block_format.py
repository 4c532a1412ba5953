"""Formats of ggml's blocks as grids: what a solver needs of them, and how they are rounded and stored.

A block type has groups of 16 or 32 inputs. Its grid is value = (code - middle) * scale, or with `minima` value = code *
scale + zero, where `zero` is the value of code 0. Scales and minima have few bits: float16 per block of 32, or 4 to 8
bits times a float16 per block of 256. In memory both are float32, one of each group; `fit` returns only such as the
block can store, so the grids of a block are fitted together (`fit_width`).

`quantize` gives ggml's own codes. They are the nearest on the stored grid, but for the types of 32 inputs, where ggml
rounds on the scale before that is rounded to float16. `encode` is always the nearest.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from quantwatt.artifacts.errors import DataError
from quantwatt.formats.fitting import CHUNK
from quantwatt.formats.gguf import layout
from quantwatt.formats.weight_format import Grid, WeightFormat, spread


@dataclass(frozen=True)
class BlockFormat(WeightFormat):
    """A type of ggml without settings. Subclasses name its sizes and say how scales are found and stored."""

    TYPE: ClassVar[str]  # the name in gguf.GGMLQuantizationType
    BLOCK: ClassVar[int]  # inputs in a block
    GROUP: ClassVar[int]  # inputs that share a scale
    LAYOUT: ClassVar[layout.Layout]

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls()

    @property
    def zero_dtype(self) -> torch.dtype | None:
        return torch.float32 if self.minima else None

    def group_width(self, columns: int) -> int:
        return self.GROUP

    def fit_width(self, columns: int) -> int:
        return self.BLOCK

    @abstractmethod
    def search(self, values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """Return (codes [blocks, BLOCK] float32, grid [blocks, groups]) of finite values, as ggml does.

        The codes are those of the search, which `rounded_again` may change.
        """

    def rounded_again(
        self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, found: torch.Tensor
    ) -> torch.Tensor:
        """Return the codes [blocks, BLOCK] float32 that ggml stores with a grid, from those that its search found."""
        return found

    @abstractmethod
    def stored_grid(self, scale: torch.Tensor, zero: torch.Tensor | None) -> Grid:
        """Round any grids [blocks, groups] to those that a block can store."""

    @abstractmethod
    def grid_fields(self, scale: torch.Tensor, zero: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Return the values of the layout's fields without codes; the grids [blocks, groups] are `stored_grid`'s."""

    @abstractmethod
    def grid_of(self, fields: Mapping[str, torch.Tensor]) -> Grid:
        """Return the inverse of `grid_fields`."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """The values of each field in a block."""

    def quantize(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return (codes, scale, zero) by ggml's search; a NaN makes the scales of its block NaN.

        Raises:
            DataError: a row's last block is not whole.
        """
        codes, scale, zero = zip(*self._searched(values, with_codes=True), strict=True)
        return torch.cat(codes), torch.cat(scale), torch.cat(zero) if self.minima else None

    def fit(self, values: torch.Tensor) -> Grid:  # [rows, BLOCK] -> [rows, groups]
        _, scale, zero = zip(*self._searched(values, with_codes=False), strict=True)
        return torch.cat(scale), torch.cat(zero) if self.minima else None

    def _searched(self, values, with_codes):
        """Yield (codes or None, scale, zero) of some blocks at a time."""
        if values.shape[1] != self.BLOCK:
            raise DataError(
                f"{self.TYPE} stores blocks of {self.BLOCK} inputs, and {values.shape[1]} are left of a row."
            )
        for part in values.split(CHUNK // self.BLOCK):
            broken = part.isnan().any(dim=1, keepdim=True)
            if broken.any():
                part = torch.where(broken, 0.0, part)
            codes, (scale, zero) = self.search(part)
            if with_codes:
                codes = self.rounded_again(part, scale, zero, codes).to(torch.uint8)
            yield codes if with_codes else None, torch.where(broken, torch.nan, scale), zero

    def _place(self, values, scale, zero):
        """Return where values stand on the axis of codes minus `middle`; a grid without steps has one point, 0."""
        values = values if zero is None else values - zero
        return (values / scale).nan_to_num_(0.0)

    def _clamped(self, places):
        return places.clamp_(-self.middle, 2**self.bits - 1 - self.middle)

    def encode(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        places = self._clamped(self._place(values, scale, zero).round_())
        return places.add_(self.middle).to(torch.uint8)

    def snap(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        snapped = self._clamped(self._place(values, scale, zero).round_()).mul_(scale)
        return snapped if zero is None else snapped.add_(zero)

    def decode(self, codes: torch.Tensor, scale: torch.Tensor | float, zero: torch.Tensor | None) -> torch.Tensor:
        values = (codes.float() - self.middle) * scale
        return values if zero is None else values + zero

    def bracket(
        self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        places = self._place(values, scale, zero)
        down = scale < 0  # a larger code is then a smaller value
        low = torch.where(down, places.ceil(), places.floor())
        high = low + torch.where(down, -1.0, 1.0)
        low, high = (self._clamped(part).add_(self.middle).to(torch.uint8) for part in (low, high))
        return low, high

    def refit(self, codes: torch.Tensor, target: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Grid:
        groups = (len(codes), scale.shape[1], -1)
        if zero is not None:
            levels = self.decode(codes, *spread((scale, None), codes.shape[1]))
            return scale, self.stored_grid(scale, (target - levels).reshape(groups).mean(dim=2))[1]
        levels, target = self.decode(codes, 1.0, None).reshape(groups), target.reshape(groups)
        product, norm = (levels * target).sum(dim=2), (levels * levels).sum(dim=2)
        return self.stored_grid(torch.where(product * scale > 0, product / norm, scale), None)

    def row_bytes(self, columns: int) -> int:
        """Return the bytes of a stored row: whole blocks."""
        return columns // self.BLOCK * layout.block_bytes(self.LAYOUT, self.counts)

    def row_bits(self, rows: int, columns: int) -> float:
        return 8 * self.row_bytes(columns)

    def pack(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor | None,
        tensor_scale: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor | None]:
        """Return {"codes": ggml's blocks, [rows, bytes of a row] uint8}."""
        groups = self.BLOCK // self.GROUP
        fields = self.grid_fields(scale.reshape(-1, groups), None if zero is None else zero.reshape(-1, groups))
        blocks = layout.write(self.LAYOUT, {"codes": codes.reshape(-1, self.BLOCK), **fields})
        return {"codes": blocks.reshape(len(codes), -1)}

    def unpack(
        self, parts: Mapping[str, torch.Tensor], columns: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        packed = parts["codes"]
        blocks = packed.reshape(-1, layout.block_bytes(self.LAYOUT, self.counts))
        fields = layout.read(self.LAYOUT, blocks, self.counts)
        scale, zero = (None if part is None else part.reshape(len(packed), -1) for part in self.grid_of(fields))
        return fields["codes"].reshape(len(packed), columns), scale, zero  # ty: ignore[invalid-explicit-return]  (no scale is None)


def half(numbers: torch.Tensor) -> torch.Tensor:
    """Round to float16, as float32."""
    return numbers.to(torch.float16).float()
