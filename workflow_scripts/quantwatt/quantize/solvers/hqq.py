"""HQQ, half-quadratic quantization (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog): no data needed.

Minimises Σ|w - q|^p over the grid with p < 1, which tolerates outliers. An auxiliary e holds the outliers of the error
w - q,

    min  |e|^p + β/2·(w - q - e)²,

and three steps alternate while β grows: round w to codes, shrink w - q to e, fit the grid to w - e by least squares.
"""

from dataclasses import dataclass

import torch

from quantwatt.formats.quantized_weight import QuantizedWeight, join_grids, join_groups, split_groups
from quantwatt.formats.weight_format import WeightFormat, spread
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import LayerSolver, Solution

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class Solver(LayerSolver):
    """Fits grids by least squares without outliers."""

    p: float  # of the norm
    beta: float
    growth: float  # factor of beta per iteration
    iterations: int  # maximum; stops earlier if the error no longer decreases

    def solve(self, weight: torch.Tensor, weight_format: WeightFormat, statistics: Observers | None = None) -> Solution:
        """Fit every group's grid to its weights with outliers left out, then round to it.

        The format's `refit` changes either a float zero point, as in the authors' package, which supports no other
        grid (and keeps β constant from version 0.2.7.post1 on: growth 1), or else the scale.

        Args:
            weight: [rows, columns] float32.
            weight_format: the weight's format.
            statistics: not used.
        """
        weight_format = weight_format.bound(weight)
        parts = split_groups(weight, weight_format)  # [groups, width] each
        grids = [weight_format.fit(part) for part in parts]
        beta, least = self.beta, float("inf")
        for _ in range(self.iterations):
            error = 0.0
            for i, part in enumerate(parts):
                grid = spread(grids[i], part.shape[1])
                codes = weight_format.encode(part, *grid)
                residual = part - weight_format.decode(codes, *grid)
                error += residual.abs().sum().item()
                grids[i] = weight_format.refit(codes, part - shrink(residual, beta, self.p), *grids[i])
            if not error < least:
                break
            beta, least = beta * self.growth, error
        codes = [
            weight_format.encode(part, *spread(grid, part.shape[1])) for part, grid in zip(parts, grids, strict=True)
        ]
        return Solution(QuantizedWeight(join_groups(codes, len(weight)), *join_grids(grids, len(weight))))


def shrink(values: torch.Tensor, beta: float, p: float) -> torch.Tensor:
    """The generalised soft threshold, sign(v)·max(|v| - |v|^(p-1)/β, 0): the outlier part of an error."""
    magnitude = values.abs()
    threshold = magnitude.clamp(min=TINY).log2_().mul_(p - 1).exp2_().div_(beta)  # three times faster than pow
    return magnitude.sub_(threshold).clamp_(min=0).mul_(values.sign())
