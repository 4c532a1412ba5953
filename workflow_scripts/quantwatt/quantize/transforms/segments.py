"""Quantize each chunk of a modulation (adaLN) linear apart: its shifts, scales and gates differ in magnitude.

Such a layer computes several vectors of one input at once, and one scale, one smoothing factor or one low-rank branch
for all of them serves the largest. This transform changes the set of layers and no weight: `allocation.allocate` names
the chunks of a layer NAME as NAME.0, NAME.1, ..., and `quantwatt.models.splits` makes them layers, before anything else
is done. What remains here does nothing.
"""

from quantwatt.quantize.transforms import Transformed


def apply(weight, weight_format, activation_format, settings, statistics):
    """The weight as it is."""
    return Transformed(weight)
