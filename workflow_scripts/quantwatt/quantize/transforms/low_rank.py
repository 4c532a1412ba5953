"""SVDQuant's low-rank branch (arXiv 2411.05007; deepcompressor): 16-bit factors carry what is hard to quantize.

The weight is W = L + R with L = up @ down of a small rank; only the residual R is quantized. Taking L from the SVD of
W alone would ignore what rounding then does to R, so the two are fitted in turn.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.quantized_weight import quantize_to_nearest
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.quantize import transforms
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.transforms import Transformed


@dataclass(frozen=True, kw_only=True)
class Transform(transforms.Transform):
    """A branch of 16-bit factors."""

    NEEDS: ClassVar = ("hessian",)

    rank: int  # or all rows or columns, where there are fewer
    iterations: int
    early_stop: bool  # once an iteration brings nothing

    def apply(
        self,
        weight: torch.Tensor,
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Observers,
    ) -> Transformed:
        """Iterate L = SVD_rank(W - Q(W - L)), Q rounding to nearest, and keep the L of the least output error.

        The factors are rounded to bfloat16 before the residual is taken, which so takes back that rounding.

        Args:
            weight: [rows, columns] float32.
            weight_format: what the residual is rounded to; activation_format: not read.
            statistics: hessian, of the layer's inputs.
        Returns:
            Transformed(weight - up @ down, down [rank, columns] bfloat16, up [rows, rank] bfloat16).
        """
        hessian, rank = statistics.hessian.value, min(self.rank, *weight.shape)
        least, best, rounded = math.inf, None, torch.zeros_like(weight)
        for _ in range(self.iterations):
            up, down = (factor.to(torch.bfloat16) for factor in truncated_svd(weight - rounded, rank))
            residual = weight - up.float() @ down.float()
            rounded = quantize_to_nearest(residual, weight_format).dequantize(weight_format)
            difference = residual - rounded
            error = ((difference @ hessian) * difference).sum().item()
            if error < least or best is None:
                least, best = error, Transformed(residual, down=down, up=up)
            elif self.early_stop:
                break
        return best  # ty: ignore[invalid-explicit-return]  (there is one iteration at least)


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors up [rows, rank] and down [rank, columns], float64, of the best approximation of a rank (Eckart-Young).

    Eigenvectors of the smaller Gram matrix give the same approximation as the whole SVD, several times faster: squaring
    the singular values costs accuracy only at those that are cut off.
    """
    matrix = matrix.double()
    rows, columns = matrix.shape
    if rows < columns:
        left = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -rank:]
        return left, left.T @ matrix
    right = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -rank:]
    return matrix @ right, right.T
