"""Quantize a convolution's weights for the skip connection and for the other inputs separately (arXiv 2302.04304).

The two parts of such an input differ in magnitude, and so do their weights. Like `segments`, this transform changes the
set of layers, but no weight: `quantwatt.models.splits` replaces a convolution NAME by the sum of NAME.0 and NAME.1.
"""

from quantwatt.quantize.transforms import Split


class Transform(Split):
    """Has no settings."""
