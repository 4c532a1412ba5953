"""MXFP8 (OCP MX 1.0): E4M3 or E5M2 elements in blocks of 32 with a power of two as scale."""

from quantwatt.formats.microscaling import MicroscalingActivations as Activations
from quantwatt.formats.microscaling import MicroscalingFormat as Format

__all__ = ["Activations", "Format"]
