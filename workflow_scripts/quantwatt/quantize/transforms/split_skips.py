"""Quantize apart what a convolution reads from below and what it reads over a skip connection (arXiv 2302.04304).

The two halves of such an input differ in magnitude, and so do the weights that read them. As `segments`, this changes
the set of layers and no weight: `quantwatt.models.splits` makes a convolution NAME the sum of NAME.0 and NAME.1.
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
    """Nothing is left to do to a half."""

    def apply(
        self,
        weight: "torch.Tensor",
        weight_format: WeightFormat,
        activation_format: ActivationFormat | None,
        statistics: Observers | None,
    ) -> Transformed:
        """The weight as it is."""
        return Transformed(weight)
