"""Codebook formats: a code selects a value, which the group's largest magnitude scales (QLoRA, arXiv 2305.14314)."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from quantwatt.formats.fitting import clip_factor, least_squares_scale
from quantwatt.formats.weight_format import Grid, WeightFormat

BINS = 4096  # bins of a table over [-1, 1], narrower than the least distance of two borders between codes


@dataclass(frozen=True)
class CodebookFormat(WeightFormat):
    """A format with a codebook. A group is `group_size` inputs of one row; a row's last group may be narrower."""

    group_size: int = 64
    clip_search: bool = False

    codebook: ClassVar[torch.Tensor]  # [2**bits] float32, the value of each code
    zero_dtype = None

    @property
    def bits(self) -> int:
        return (len(self.codebook) - 1).bit_length()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(settings["group_size"], settings.get("clip_search", False))

    def group_width(self, columns: int) -> int:
        return min(self.group_size, columns)

    def fit(self, values: torch.Tensor) -> Grid:  # [rows, width] -> [rows, 1]
        scale = values.abs().amax(dim=1, keepdim=True)
        scale = torch.where(scale == 0, 1.0, scale)
        if self.clip_search:
            scale = scale * clip_factor(values, self, lambda factor: (scale * factor, None))
        return scale, None

    def encode(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        table = _table(type(self), values.device)
        values = values / scale
        bins = _bin(values).flatten()
        border, below, above = (column.index_select(0, bins).view_as(values) for column in table)
        return torch.where(values > border, above, below)

    def snap(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        return self.decode(self.encode(values, scale, zero), scale, zero)

    def bracket(
        self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ordered, code_of = _ordered(type(self), values.device)
        above = torch.bucketize((values / scale).contiguous(), ordered, right=True)
        return code_of[(above - 1).clamp_(min=0)], code_of[above.clamp_(max=len(ordered) - 1)]

    def decode(self, codes: torch.Tensor, scale: torch.Tensor | float, zero: torch.Tensor | None) -> torch.Tensor:
        return _values(type(self), codes.device).index_select(0, codes.flatten().int()).view(codes.shape) * scale

    def refit(self, codes: torch.Tensor, target: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Grid:
        return least_squares_scale(self.decode(codes, 1.0, None), target, scale), None


@functools.cache
def _values(kind, device):
    return kind.codebook.to(device)


@functools.cache
def _ordered(kind, device):
    """Return the codebook in ascending order, [2**bits], and the code of each value, uint8."""
    ordered, code_of = _values(kind, device).sort(stable=True)
    return ordered, code_of.to(torch.uint8)


def _bin(values):
    return (values.nan_to_num() * (BINS / 2)).clamp_(-BINS / 2, BINS / 2 - 1).floor_().int() + BINS // 2


@functools.cache
def _table(kind, device):
    """Return for each bin: the border of two codes in it (or infinity), the code below and the code above: [BINS] each.

    Bins ascend with values, so a look-up and one comparison replace a search among the borders.
    """
    ordered, code_of = _ordered(kind, device)
    borders = (ordered[1:] + ordered[:-1]) / 2
    bins = _bin(borders)
    border = torch.full((BINS,), float("inf"), device=device)
    border[bins.long()] = borders
    passed = torch.searchsorted(bins, torch.arange(BINS, dtype=torch.int32, device=device))
    return border, code_of[passed], code_of[(passed + 1).clamp(max=len(ordered) - 1)]
