"""Qronos (arXiv 2505.11695): correct the errors of earlier layers, then diffuse the rounding errors.

Minimizes ‖XWᵀ - X̃Qᵀ‖ over Q on the grid, with inputs X in the float model and X̃ in the model quantized so far.
With H = X̃ᵀX̃, G = X̃ᵀX and λ = α·σ₁(H), the paper's steps for one output row w are

    1. q₁ = Q((G₁w - H₁,₂: w₂:) / H₁₁)
    2. w₂: ← (H₂:,₂: + λI)⁻¹((G + λI)₂: w - H₂:,₁ q₁)
    3. GPTQ's diffusion over the columns 2:, with H₂:,₂: + λI.

Let v solve (H + λI) v = (G + λI) w. Step 2 gives v₂: with the correction for the error v₁ - q₁, exactly as GPTQ's
diffusion of v over all columns corrects it. So Qronos equals GPTQ on v, except for the rounding of the first column.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from quantwatt.formats.quantized_weight import quantize_to_nearest
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import Solution
from quantwatt.quantize.solvers.gptq import ColumnSolver, diffuse, factorize, order_of, permuted, prepare

POWER_ITERATIONS = 30
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class Solver(ColumnSolver):
    """Minimises the output error against the float model."""

    NEEDS: ClassVar = ("hessian", "cross")

    alpha: float  # damping, as a fraction of the Hessian's largest eigenvalue

    def solve(self, weight: torch.Tensor, weight_format: WeightFormat, statistics: Observers) -> Solution:
        """Choose codes whose output on the quantized model's inputs is close to the float model's output.

        Args:
            weight: [rows, columns] float32.
            statistics: hessian of X̃, and cross: X̃ᵀX with the hessian's scaling.
        Returns:
            Solution; `damping` is λ as a fraction of the Hessian's mean diagonal, `fallback` as in GPTQ.
        """
        hessian, usable = prepare(statistics.hessian.value)
        # G is [columns of X̃, columns of X]; where inputs are not finite, X is treated as equal to X̃.
        cross = torch.where(usable & usable[:, None], statistics.cross.value, hessian)
        dead = hessian.diagonal() == 0
        weight = torch.where(dead, 0.0, weight)
        order = order_of(hessian, self)
        hessian, cross = permuted(hessian, order), permuted(cross, order)
        source = weight.index_select(1, order).T.contiguous()  # [columns, rows]
        mean = hessian.diagonal().mean().item()
        fraction = self.alpha * largest_eigenvalue(hessian) / mean if mean > 0 else self.alpha
        lower, damping, fallback = factorize(hessian, fraction)
        if lower is None or damping is None or not usable.any():
            return Solution(quantize_to_nearest(weight, weight_format), None, "rtn")
        first = (cross[0] @ source - hessian[0, 1:] @ source[1:]) / hessian[0, 0].clamp(min=TINY)  # step 1
        cross.diagonal().add_(damping * hessian.diagonal().mean())
        # Uᵀv = D⁻¹U⁻¹(G + λI)w: half of the solution for v, which is all that diffusing v needs. The triangular system
        # is solved for the narrower right-hand side: (G + λI)w, or G + λI and multiplied by w afterwards.
        right = cross if len(weight) > len(cross) else cross @ source
        halfway = torch.linalg.solve_triangular(lower, right.flip(0), upper=False)
        pushed = (halfway / lower.diagonal()[:, None]).flip(0)  # [columns, rows or columns]
        pushed = pushed @ source if right is cross else pushed
        quantized = diffuse(pushed, weight, weight_format, self, order, lower, first)
        return Solution(quantized, damping, fallback or (None if usable.all() else "columns"))


def largest_eigenvalue(hessian: torch.Tensor) -> float:
    """Return σ₁ by power iteration from a fixed start."""
    vector = torch.ones(len(hessian), device=hessian.device)
    for _ in range(POWER_ITERATIONS):
        vector = hessian @ (vector / vector.norm().clamp(min=TINY))
    return vector.norm().item()
