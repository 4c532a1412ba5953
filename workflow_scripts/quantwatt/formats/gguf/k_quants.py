"""K-quants: blocks of 256 inputs, whose groups have scales (and minima) of a few bits times a float16 of the block.

The largest scale of a block always has the extreme code, as ggml chooses it. So a block's float16 factor follows from
its groups' scales in float32, and grids need no further part for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from quantwatt.formats.gguf import compiled_search, search
from quantwatt.formats.gguf.block_format import BlockFormat, half
from quantwatt.formats.group_numbers import GroupNumbers
from quantwatt.formats.weight_format import Grid, spread


@dataclass(frozen=True)
class KQuant(BlockFormat):
    """What both kinds have in common."""

    BLOCK = 256
    EXTREME: ClassVar[int]  # the code of the largest scale

    def rounded_again(
        self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, found: torch.Tensor
    ) -> torch.Tensor:
        """Round to the stored grid; groups without steps keep the codes of the search, as in ggml."""
        scale, zero = spread((scale, zero), self.BLOCK)
        return torch.where(scale == 0, found, self.encode(values, scale, zero).float())

    def held_grid(
        self, scale: torch.Tensor, zero: torch.Tensor | None, tensor_scale: torch.Tensor | None = None
    ) -> tuple[GroupNumbers, GroupNumbers | None]:
        return self._held(scale), None if zero is None else self._held(zero)

    def _held(self, numbers):
        """Hold numbers [rows, groups] as whole numbers of a byte and a float16 of each block."""
        rows = len(numbers)
        factor, codes = factors(numbers.reshape(-1, self.BLOCK // self.GROUP), self.EXTREME)
        dtype = torch.int8 if self.EXTREME < 0 else torch.uint8
        return GroupNumbers(codes.to(dtype).reshape(rows, -1), factor.to(torch.float16).reshape(rows, -1))


@dataclass(frozen=True)
class MinimaFormat(KQuant):
    """q2_k, q4_k, q5_k: value = code * scale - minimum, and neither is negative."""

    minima = True
    FIRST: ClassVar[float]  # of the search: how much finer than the range the first grid is, in codes
    STEPS: ClassVar[int]
    ABSOLUTE: ClassVar[bool] = False  # whether the search minimises absolute errors, weighted by the magnitude

    def search(self, values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        groups = values.reshape(-1, self.GROUP)
        weights = groups.abs()
        if not self.ABSOLUTE:
            mean = search.in_order((groups * groups).T.contiguous()) / self.GROUP
            # By way of float64: on CPUs torch's root of float32 may be off in the last bit.
            weights = mean.double().sqrt().float()[:, None] + weights
        settings = 2**self.bits - 1, self.FIRST, self.STEPS, self.ABSOLUTE
        scale, low, codes = compiled_search.affine(groups, weights, *settings)
        shape = (len(values), values.shape[1] // self.GROUP)
        grid = self.stored_grid(scale.reshape(shape), low.reshape(shape))
        return codes.reshape(values.shape), grid

    def stored_grid(self, scale: torch.Tensor, zero: torch.Tensor | None) -> Grid:
        if zero is None:
            raise ValueError("a grid with minima needs them")
        return self._shared(scale), -self._shared(-zero)

    def _shared(self, numbers):
        """Round [blocks, groups] to whole multiples, up to EXTREME, of a float16 per block; negative ones to 0."""
        largest = numbers.amax(dim=1, keepdim=True).clamp(min=0)
        codes = (search.quotient(self.EXTREME, largest) * numbers).round_().nan_to_num_(0.0).clamp_(0, self.EXTREME)
        return half(largest / self.EXTREME) * codes

    def grid_fields(self, scale: torch.Tensor, zero: torch.Tensor | None) -> dict[str, torch.Tensor]:
        if zero is None:
            raise ValueError("a grid with minima needs them")
        factor, codes = factors(scale, self.EXTREME)
        minimum, minima = factors(-zero, self.EXTREME)
        return {"scale": factor, "minimum": minimum, "scales": torch.cat([codes, minima], dim=1).to(torch.uint8)}

    def grid_of(self, fields: Mapping[str, torch.Tensor]) -> Grid:
        codes, minima = fields["scales"].float().chunk(2, dim=1)
        return fields["scale"] * codes, -(fields["minimum"] * minima)

    @property
    def counts(self) -> dict[str, int]:
        return {"codes": self.BLOCK, "scale": 1, "minimum": 1, "scales": 2 * self.BLOCK // self.GROUP}


@dataclass(frozen=True)
class SymmetricFormat(KQuant):
    """q3_k, q6_k: value = (code - middle) * scale, where scales may be negative."""

    GROUP = 16

    @property
    def middle(self) -> int:
        return 2 ** (self.bits - 1)

    def _search_groups(self, groups):
        """Return (scale [groups], codes [groups, GROUP])."""
        return compiled_search.symmetric(groups, self.middle)

    def search(self, values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        scale, codes = self._search_groups(values.reshape(-1, self.GROUP))
        grid = self.stored_grid(scale.reshape(len(values), values.shape[1] // self.GROUP), None)
        return codes.reshape(values.shape), grid

    def stored_grid(self, scale: torch.Tensor, zero: torch.Tensor | None) -> Grid:
        inverse = search.quotient(self.EXTREME, search.extreme(scale.T)[:, None])
        codes = (inverse * scale).round_().nan_to_num_(0.0).clamp_(self.EXTREME, -self.EXTREME - 1)
        return half(1 / inverse) * codes, None

    def grid_fields(self, scale: torch.Tensor, zero: torch.Tensor | None) -> dict[str, torch.Tensor]:
        factor, codes = factors(scale, self.EXTREME)
        # An empty block is all zeros in ggml; its scales mean nothing.
        stored = torch.where(factor == 0, self._empty_code, codes - self.EXTREME)
        return {"scale": factor, "scales": stored.to(torch.uint8)}

    @property
    def _empty_code(self):
        return 0

    def grid_of(self, fields: Mapping[str, torch.Tensor]) -> Grid:
        return fields["scale"] * (fields["scales"].float() + self.EXTREME), None

    @property
    def counts(self) -> dict[str, int]:
        return {"codes": self.BLOCK, "scale": 1, "scales": self.BLOCK // self.GROUP}


def factors(numbers: torch.Tensor, extreme: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Take [blocks, groups] apart into (float16 factor as float32 [blocks, 1], whole numbers [blocks, groups]).

    Args:
        numbers: factor * whole number, where that of the largest magnitude is `extreme`; NaN gives the factor NaN.
    Raises:
        ValueError: they are not.
    """
    largest = numbers.gather(1, numbers.abs().argmax(dim=1, keepdim=True))
    factor = largest / extreme + 0.0  # exact: the product has fewer bits than float32; 0.0 for -0.0
    codes = (numbers / factor).nan_to_num_(0.0).round_()
    if not torch.equal((half(factor) * codes).nan_to_num(0.0), numbers.nan_to_num(0.0)):
        raise ValueError("these are no scales of a block")
    return factor, codes
