"""Round to nearest (RTN): the baseline for all other solvers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantwatt.formats.quantized_weight import quantize_to_nearest
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.solvers import LayerSolver, Solution

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Solver(LayerSolver):
    """Rounds every weight to the nearest value on its group's grid."""

    def solve(
        self, weight: "torch.Tensor", weight_format: WeightFormat, statistics: Observers | None = None
    ) -> Solution:
        return Solution(quantize_to_nearest(weight, weight_format))
