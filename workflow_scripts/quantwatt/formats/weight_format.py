"""Interface of a weight format whose codes quantwatt stores itself: a grid of values, and the number of bits of a code.

The module of a format has a class `Format`: a frozen dataclass of the settings in its schema. It extends WeightFormat,
or LibraryFormat (library.py) if a library rounds, stores and computes.

Coding is elementwise, so every solver works with every format: a solver chooses values, one column or one matrix at a
time, and does not depend on the format. Tensors may be on any device, but all tensors of a call on the same device.

The settings of every format include "bits", also where it is constant: budgets, tables and messages read it from there
and import no format. If inputs share a scale in groups, "group_size" is the number of inputs in a group.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch

from quantwatt.formats.group_numbers import GroupNumbers
from quantwatt.formats.packing import pack, packed_bytes, unpack

Grid = tuple[torch.Tensor, torch.Tensor | None]  # scale and zero point, each [rows, 1] for one group, or broadcastable


class WeightFormat(ABC):
    """A grid of values for each group of a row."""

    bits: int  # of one code
    scale_dtype: ClassVar[torch.dtype] = torch.float32  # type in which a group's scale is stored
    tensor_scale: torch.Tensor | None = None  # [1] float32, a factor of all scales, of a format `bound` to a weight
    shares_rows: bool = False  # rows share scales, so `fit` needs all rows of a group at once
    codebook: ClassVar[torch.Tensor | None] = None  # [2**bits] float32, value of each code at scale 1; or None
    middle: int = 0  # the code of 0 if there is no zero point
    minima: ClassVar[bool] = False  # whether a zero point is the value of code 0, and not the code of value 0

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Create the format from a completed `weights` entry of a method."""

    @property
    def of_one_layer(self) -> bool:
        """Whether a scale depends on more than its row, so that layers must not be stacked."""
        return self.shares_rows

    @property
    @abstractmethod
    def zero_dtype(self) -> torch.dtype | None:
        """Type in which a group's zero point is stored; None if there is no zero point."""

    @abstractmethod
    def group_width(self, columns: int) -> int:
        """Return how many inputs share a scale."""

    def fit_width(self, columns: int) -> int:
        """Return how many inputs `fit` takes: those of one group, or of several whose grids are stored together."""
        return self.group_width(columns)

    @abstractmethod
    def fit(self, values: torch.Tensor) -> Grid:
        """Fit the grid to each row's range: [rows, width] -> [rows, groups in this width] each, mostly [rows, 1]."""

    def quantize(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Fit grids as `fit` and round to them: return (codes [rows, width], scale, zero)."""
        grid = self.fit(values)
        return self.encode(values, *spread(grid, values.shape[1])), *grid

    @abstractmethod
    def encode(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """Return the codes of values, elementwise, uint8; scale and zero broadcast."""

    @abstractmethod
    def decode(self, codes: torch.Tensor, scale: torch.Tensor | float, zero: torch.Tensor | None) -> torch.Tensor:
        """Return the values of codes, elementwise, float32."""

    @abstractmethod
    def snap(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """Return decode(encode(values)) in fewer steps; solvers call it for each column."""

    @abstractmethod
    def bracket(
        self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (low, high): the codes of the grid points next to each value; equal beyond an end of the grid."""

    @abstractmethod
    def refit(self, codes: torch.Tensor, target: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Grid:
        """Return the least-squares grid for fixed codes [rows, width].

        A float zero point is fitted alone; otherwise the scale, and an integer zero point if there is one.
        """

    def bound(self, weight: torch.Tensor) -> Self:
        """Return the format with what it fixes once for a whole weight; a format that is bound returns itself.

        Solvers get a bound format, or bind it to the weight [rows, columns] that they get, before they fit any group.
        """
        return self

    def pack_scale(self, scale: torch.Tensor, tensor_scale: torch.Tensor | None = None) -> torch.Tensor:
        """Return scales [rows, groups] float32 as they are stored."""
        return scale

    def unpack_scale(self, stored: torch.Tensor, rows: int, tensor_scale: torch.Tensor | None = None) -> torch.Tensor:
        """The inverse of `pack_scale`: [rows, groups] float32."""
        return stored

    def held_grid(
        self, scale: torch.Tensor, zero: torch.Tensor | None, tensor_scale: torch.Tensor | None = None
    ) -> tuple[GroupNumbers, GroupNumbers | None]:
        """Return grids [rows, groups] as kernels hold them, about as small as they are stored: (scale, zero point)."""
        return GroupNumbers(scale), None if zero is None else GroupNumbers(zero)

    def grid_bits(self, rows: int, columns: int) -> int:
        """Return the bits of all scales and zero points of a weight."""
        groups = -(-columns // self.group_width(columns))
        return 8 * rows * groups * sum(dtype.itemsize for dtype in (self.scale_dtype, self.zero_dtype) if dtype)

    def row_bits(self, rows: int, columns: int) -> float:
        """Return the bits of a stored row: packed codes (padded to whole bytes), and its share of the rows' grids."""
        return 8 * packed_bytes(columns, self.bits) + self.grid_bits(rows, columns) / rows

    def pack(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor | None,
        tensor_scale: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor | None]:
        """Return {part of a checkpoint: tensor} of codes [rows, columns] and their grids [rows, groups]."""
        return {"codes": pack(codes, self.bits), "scale": self.pack_scale(scale, tensor_scale), "zero": zero}

    def unpack(
        self, parts: Mapping[str, torch.Tensor], columns: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Invert `pack`: return (codes, scale, zero)."""
        codes = unpack(parts["codes"], self.bits, columns)
        return codes, self.unpack_scale(parts["scale"], len(codes), parts.get("tensor_scale")), parts.get("zero")


def spread(grid: Grid, width: int) -> Grid:
    """Repeat the grids [rows, groups] of a part to its columns, [rows, width]; a single one, [rows, 1], stays."""
    scale, zero = grid
    if scale.shape[1] == 1:
        return grid
    repeats = width // scale.shape[1]
    return scale.repeat_interleave(repeats, dim=1), None if zero is None else zero.repeat_interleave(repeats, dim=1)
