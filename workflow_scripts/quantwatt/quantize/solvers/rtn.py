"""Round to nearest: the control for every other solver."""

from dataclasses import dataclass

from quantwatt.formats.quantized_weight import quantize_to_nearest
from quantwatt.quantize.solvers import LayerSolver, Solution


@dataclass(frozen=True, kw_only=True)
class Solver(LayerSolver):
    """Every weight goes to the nearest value of its group's grid."""

    def solve(self, weight, weight_format, statistics=None):
        return Solution(quantize_to_nearest(weight, weight_format))
