"""Kernels: layers that compute in a format, by name.

What a kernel takes by its own word it must still prove (quantwatt.inference.probe).
"""

from collections.abc import Mapping
from typing import Any, Protocol


class Kernel(Protocol):
    """What a module of this folder offers.

    A layer is {"weights", "activations", "in_features", "out_features", "parts"} of a checkpoint's manifest, of a
    convolution also its geometry.
    """

    NAME: str  # what computes
    PACKAGE: str  # that provides it
    BOUND: (
        float  # largest norm of the difference between its outputs and the dequantized layer's, relative to the latter
    )
    Layer: Any  # subclass of quantwatt.inference.linear.QuantizedLinear

    def refusal(self, layer: Mapping[str, Any], device: str) -> str | None:
        """Why it cannot take a layer, half a sentence, or None."""
