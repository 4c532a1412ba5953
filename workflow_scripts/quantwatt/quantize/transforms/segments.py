"""Quantize each chunk of a modulation (adaLN) linear apart: its shifts, scales and gates differ in magnitude.

Such a layer computes several vectors of one input at once, and one scale, one smoothing factor or one low-rank branch
for all of them serves the largest. This transform changes the set of layers and no weight: `allocation.allocate` names
the chunks of a layer NAME as NAME.0, NAME.1, ..., and `quantwatt.models.splits` makes them layers, before anything else
is done. What remains here does nothing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantwatt.formats.activations import ActivationFormat
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.quantize import transforms
from quantwatt.quantize.observers import Observers
from quantwatt.quantize.transforms import Transformed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Transform(transforms.Transform):
    """Nothing is left to do to a chunk."""

    def apply(
        self,
        weight: "torch.Tensor",
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Observers | None,
    ) -> Transformed:
        """The weight as it is."""
        return Transformed(weight)
