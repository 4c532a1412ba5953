"""Blocks of 32 inputs with a float16 scale: q8_0, q4_0, q5_0; with a minimum q4_1, q5_1; iq4_nl with its codebook."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from quantwatt.formats.gguf import compiled_search, search
from quantwatt.formats.gguf.block_format import BlockFormat, half
from quantwatt.formats.group_numbers import GroupNumbers
from quantwatt.formats.weight_format import Grid

REACH = 256  # beyond twice the largest magnitude of a codebook of signed bytes


@dataclass(frozen=True)
class SimpleFormat(BlockFormat):
    """The code of the value of the largest magnitude is 0, whatever its sign: a scale may be negative."""

    BLOCK = GROUP = 32

    @property
    def middle(self) -> int:
        return 0 if self.minima else 2 ** (self.bits - 1)

    def search(self, values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        if self.minima:
            low, high = values.amin(dim=1, keepdim=True) + 0.0, values.amax(dim=1, keepdim=True)  # 0.0 for -0.0
            scale = (high - low) / (2**self.bits - 1)
            places = (values - low) * _inverse(scale) + 0.5
        else:
            low = None
            scale = search.extreme(values.T)[:, None] / -self.middle
            # In float64 there is one rounding, that of the comparison, as with the fused product of ggml and gguf.
            places = values.double() * _inverse(scale).double() + (self.middle + 0.5)
        return places.trunc().clamp(0, 2**self.bits - 1), self.stored_grid(scale, low)

    def stored_grid(self, scale: torch.Tensor, zero: torch.Tensor | None) -> Grid:
        return half(scale), None if zero is None else half(zero)

    def grid_fields(self, scale: torch.Tensor, zero: torch.Tensor | None) -> dict[str, torch.Tensor]:
        return {"scale": scale} if zero is None else {"scale": scale, "minimum": zero}

    def grid_of(self, fields: Mapping[str, torch.Tensor]) -> Grid:
        return fields["scale"], fields.get("minimum")

    def held_grid(
        self, scale: torch.Tensor, zero: torch.Tensor | None, tensor_scale: torch.Tensor | None = None
    ) -> tuple[GroupNumbers, GroupNumbers | None]:
        return GroupNumbers(scale.half()), None if zero is None else GroupNumbers(zero.half())

    @property
    def counts(self) -> dict[str, int]:
        return {"codes": self.BLOCK, "scale": 1, "minimum": 1}


@dataclass(frozen=True)
class ByteFormat(SimpleFormat):
    """q8_0: the largest magnitude is 127."""

    def search(self, values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        scale = values.abs().amax(dim=1, keepdim=True) / 127
        places = values * _inverse(scale)
        magnitude = places.abs()
        whole = magnitude.floor()
        rounded = places.sign() * (whole + (2 * (magnitude - whole)).floor())  # halves away from zero
        return rounded + self.middle, self.stored_grid(scale, None)


@dataclass(frozen=True)
class CodebookFormat(SimpleFormat):
    """iq4_nl: value = codebook[code] * scale; the codebook ascends."""

    codebook: ClassVar[torch.Tensor]
    middle = 0

    def search(self, values: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        codes, levels = _nearest(type(self), values.device)
        scale = compiled_search.of_codebook(
            values, self.codebook[0].item(), levels, lambda places: _look_up(levels, places)
        )[:, None]
        return _look_up(codes, values * _inverse(scale)), self.stored_grid(scale, None)

    def encode(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        codes, _ = _nearest(type(self), values.device)
        return _look_up(codes, self._place(values, scale, zero))

    def snap(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        _, levels = _nearest(type(self), values.device)
        return _look_up(levels, self._place(values, scale, zero)).mul_(scale)

    def decode(self, codes: torch.Tensor, scale: torch.Tensor | float, zero: torch.Tensor | None) -> torch.Tensor:
        return self.codebook.to(codes.device)[codes.int()] * scale

    def bracket(
        self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        codebook = self.codebook.to(values.device)
        places, down = self._place(values, scale, zero).contiguous(), scale < 0
        last = len(codebook) - 1
        upper = torch.where(
            down, torch.bucketize(places, codebook), torch.bucketize(places, codebook, right=True)
        )  # the first code above the place, or with a negative scale not below it
        near, far = (upper - 1).clamp(min=0), upper.clamp(max=last)
        low, high = torch.where(down, far, near), torch.where(down, near, far)
        return low.to(torch.uint8), high.to(torch.uint8)


@functools.cache
def _nearest(kind, device):
    """Return tables of the nearest codes and levels from -REACH / 2 on, in steps of 1/2, [2 * REACH] each.

    A codebook holds whole numbers, so its borders are multiples of 1/2. On a border the upper code is taken.
    """
    codebook = kind.codebook.to(device)
    places, borders = torch.arange(-REACH, REACH, device=device) / 2, (codebook[1:] + codebook[:-1]) / 2
    codes = torch.bucketize(places, borders, right=True)
    return codes.to(torch.uint8), codebook[codes]


def _look_up(table, places):
    halves = (2 * places).floor_().clamp_(-REACH, REACH - 1).add_(REACH).int()
    return table.index_select(0, halves.flatten()).view(places.shape)


def _inverse(scale):
    return torch.where(scale == 0, 0.0, 1 / scale)
