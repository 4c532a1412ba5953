"""Kernels: layers that compute in a format, by name.

A kernel that accepts a layer (`refusal` returns None) is still tested once on the device: quantwatt.inference.probe.
"""

from collections.abc import Mapping
from typing import Any, Protocol


class Kernel(Protocol):
    """Interface of a module in this folder.

    A layer is {"weights", "activations", "in_features", "out_features", "parts"} of a checkpoint's manifest; a
    convolution also has its geometry.
    """

    NAME: str  # name of the kernel in results
    PACKAGE: str  # package that provides the kernel
    BOUND: float  # largest relative error: norm of (outputs - dequantized layer's outputs) / norm of the latter
    Layer: Any  # subclass of quantwatt.inference.linear.QuantizedLinear

    def refusal(self, layer: Mapping[str, Any], device: str) -> str | None:
        """Return why the kernel does not accept a layer, as half a sentence, or None."""
