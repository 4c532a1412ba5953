"""Quantize apart what a convolution reads from below and what it reads over a skip connection (arXiv 2302.04304).

The two halves of such an input differ in magnitude, and so do the weights that read them. As `segments`, this changes
the set of layers and no weight: `quantwatt.models.splits` makes a convolution NAME the sum of NAME.0 and NAME.1.
"""

from quantwatt.quantize.transforms import Transformed


def apply(weight, weight_format, activation_format, settings, statistics):
    """The weight as it is."""
    return Transformed(weight)
