"""Round to nearest: the control for every other solver."""

from quantwatt.formats.quantized_weight import quantize_to_nearest
from quantwatt.quantize.solvers import Solution


def solve(weight, weight_format, settings, statistics=None):
    """Round every weight to the nearest value of its group's grid."""
    return Solution(quantize_to_nearest(weight, weight_format))
