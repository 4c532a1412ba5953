"""SVDQuant's low-rank branch (arXiv 2411.05007; deepcompressor): 16-bit factors carry what is hard to quantize.

The weight is W = L + R, where L = up @ down has a small rank; only the residual R is quantized. An L from the SVD of W
alone would ignore the rounding error of R, so L and the rounded R are fitted alternately.
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

    rank: int  # at most the number of rows and of columns
    iterations: int
    early_stop: bool  # stop at the first iteration that does not reduce the error

    def apply(
        self,
        weight: torch.Tensor,
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Observers,
    ) -> Transformed:
        """Iterate L = SVD_rank(W - Q(W - L)), Q rounding to nearest, and keep the L with the smallest output error.

        The factors are rounded to bfloat16 before the residual is computed, so that it compensates for this rounding.

        Args:
            weight: [rows, columns] float32.
            weight_format: the format of the residual; activation_format: not used.
            statistics: hessian of the layer's inputs.
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
        return best  # ty: ignore[invalid-explicit-return]  (there is at least one iteration)


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return up [rows, rank] and down [rank, columns], float64, of the best low-rank approximation (Eckart-Young).

    Eigenvectors of the smaller Gram matrix give the same approximation as a full SVD, several times faster: squaring
    the singular values loses accuracy only for the discarded ones.
    """
    matrix = matrix.double()
    rows, columns = matrix.shape
    if rows < columns:
        left = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -rank:]
        return left, left.T @ matrix
    right = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -rank:]
    return matrix @ right, right.T
