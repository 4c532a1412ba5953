"""Quantize a convolution's weights for the skip connection and for the other inputs separately (arXiv 2302.04304).

The two parts of such an input differ in magnitude, and so do their weights. Like `segments`, this transform changes the
set of layers, but no weight: `quantwatt.models.splits` replaces a convolution NAME by the sum of NAME.0 and NAME.1.
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
