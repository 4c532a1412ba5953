"""Quantize each chunk of a modulation (adaLN) linear separately: shifts, scales and gates differ in magnitude.

Such a layer computes several vectors from one input. A single scale, smoothing factor or low-rank branch for all of
them fits only the largest. This transform changes the set of layers, but no weight: `allocation.allocate` names the
chunks of a layer NAME as NAME.0, NAME.1, ..., and `quantwatt.models.splits` makes them separate layers before
quantization. So `apply` has nothing to do.
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
    """Changes no weight: the layers were split before."""

    def apply(
        self,
        weight: "torch.Tensor",
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Observers | None,
    ) -> Transformed:
        """Return the unchanged weight."""
        return Transformed(weight)
