"""The grids of a weight's groups, in order, for solvers that process a weight column by column."""

from collections.abc import Iterable
from typing import Self

import torch

from quantwatt.formats.weight_format import Grid, WeightFormat


class Grids:
    """List of the grids of a weight's groups: scale and zero (float, or None) as [groups, rows]."""

    def __init__(self, scale: Iterable[torch.Tensor] = (), zero: Iterable[torch.Tensor | None] = ()):
        self.scale, self.zero = list(scale), list(zero)

    @classmethod
    def fitted(cls, weight: torch.Tensor, weight_format: WeightFormat) -> Self:
        grids = cls()
        for part in weight.split(weight_format.fit_width(weight.shape[1]), dim=1):
            grids.append(weight_format.fit(part))
        return grids

    def append(self, grid: Grid) -> None:
        scale, zero = grid  # [rows, groups fitted together]
        self.zero_dtype = None if zero is None else zero.dtype
        for group in range(scale.shape[1]):
            self.scale.append(scale[:, group].contiguous())
            self.zero.append(None if zero is None else zero[:, group].float())

    def __getitem__(self, group):
        return self.scale[group], self.zero[group]

    def of(self, groups: torch.Tensor) -> Grid:
        """Return the grids of the groups [n], as [n, rows]; of one group as [1, rows], which broadcasts."""
        numbers = groups.tolist()
        chosen = [self[group] for group in (numbers if len(set(numbers)) > 1 else numbers[:1])]
        zero = None if self.zero_dtype is None else torch.stack([zero for _, zero in chosen if zero is not None])
        return torch.stack([scale for scale, _ in chosen]), zero

    def stored(self) -> Grid:
        """Return (scale, zero), each [rows, groups], in the format's types."""
        zero = (
            None
            if self.zero_dtype is None
            else torch.stack([zero for zero in self.zero if zero is not None], dim=1).to(self.zero_dtype)
        )
        return torch.stack(self.scale, dim=1), zero
