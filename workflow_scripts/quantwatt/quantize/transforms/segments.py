"""Quantize each chunk of a modulation (adaLN) linear apart: its shifts, scales and gates differ in magnitude.

Such a layer computes several vectors of one input at once, and one scale, one smoothing factor or one low-rank branch
for all of them serves the largest. This transform changes the set of layers and no weight: `allocation.allocate` names
the chunks of a layer NAME as NAME.0, NAME.1, ..., and `quantwatt.models.splits` makes them layers, before anything else
is done. What remains here does nothing.
"""

from dataclasses import dataclass

from quantwatt.quantize import transforms
from quantwatt.quantize.transforms import Transformed


@dataclass(frozen=True, kw_only=True)
class Transform(transforms.Transform):
    """Nothing is left to do to a chunk."""

    def apply(self, weight, weight_format, activation_format, statistics):
        """The weight as it is."""
        return Transformed(weight)
