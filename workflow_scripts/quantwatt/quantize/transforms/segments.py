"""Quantize each chunk of a modulation (adaLN) linear separately: shifts, scales and gates differ in magnitude.

Such a layer computes several vectors from one input. A single scale, smoothing factor or low-rank branch for all of
them fits only the largest. This transform changes the set of layers, but no weight: `allocation.allocate` names the
chunks of a layer NAME as NAME.0, NAME.1, ..., and `quantwatt.models.splits` makes them separate layers before
quantization. So `apply` has nothing to do.
"""

from quantwatt.quantize.transforms import Split


class Transform(Split):
    """Has no settings."""
