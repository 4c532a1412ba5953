"""HQQ, half-quadratic quantization (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog): without data.

Minimises Σ|w - q|^p over the grid, p < 1, which lets outliers be. An auxiliary e takes the outliers of the error w - q,

    min  |e|^p + β/2·(w - q - e)²,

and three steps alternate while β grows: codes by rounding w, e by shrinking w - q, the grid by least squares to w - e.
"""

from dataclasses import dataclass

import torch

from quantwatt.formats.quantized_weight import QuantizedWeight, join_grids, join_groups, split_groups
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import LayerSolver, Solution

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class Solver(LayerSolver):
    """Grids by least squares, without outliers."""

    p: float  # of the norm
    beta: float
    growth: float  # of beta, an iteration
    iterations: int  # at most: it ends where the error no longer falls

    def solve(self, weight: torch.Tensor, weight_format: WeightFormat, statistics: Observers | None = None) -> Solution:
        """Fit every group's grid to its weights with outliers left out, then round to it.

        What moves is what the format's `refit` moves: a float zero point, as in the authors' package, which knows no
        other grid (and from version 0.2.7.post1 on leaves β as it is: growth 1); else the scale.

        Args:
            weight: [rows, columns] float32.
            weight_format: what it is rounded to.
            statistics: not read.
        """
        parts = split_groups(weight, weight_format)  # [groups, width] each
        grids = [weight_format.fit(part) for part in parts]
        beta, least = self.beta, float("inf")
        for _ in range(self.iterations):
            error = 0.0
            for i, part in enumerate(parts):
                codes = weight_format.encode(part, *grids[i])
                residual = part - weight_format.decode(codes, *grids[i])
                error += residual.abs().sum().item()
                grids[i] = weight_format.refit(codes, part - shrink(residual, beta, self.p), *grids[i])
            if not error < least:
                break
            beta, least = beta * self.growth, error
        codes = [weight_format.encode(part, *grid) for part, grid in zip(parts, grids, strict=True)]
        return Solution(QuantizedWeight(join_groups(codes, len(weight)), *join_grids(grids, len(weight))))


def shrink(values: torch.Tensor, beta: float, p: float) -> torch.Tensor:
    """The generalised soft threshold, sign(v)·max(|v| - |v|^(p-1)/β, 0): what of an error counts as outlier."""
    magnitude = values.abs()
    threshold = magnitude.clamp(min=TINY).log2_().mul_(p - 1).exp2_().div_(beta)  # a third of pow's time
    return magnitude.sub_(threshold).clamp_(min=0).mul_(values.sign())
