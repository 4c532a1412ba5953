"""Formats whose weights a library rounds, stores and computes with itself.

Such a module offers

LIBRARY                                                 name of the package
convert(linear, settings, dtype) -> module              the library's layer in place of a float one
state(module) -> {part: tensor}                         what a checkpoint stores
restore(state, settings, layer, bias, dtype, device)    the layer again, in aligned memory whatever it is given
dequantize(state, settings, layer) -> [rows, columns]   float32
unsupported(settings, device) -> sentence or None       why it cannot compute there
simulated(settings, device) -> sentence or None         why what it computes there is not the format's own product;
                                                        only where that can happen
describe(settings) -> (bits of a weight, of an activation or None where it stays float)
"""

from typing import TYPE_CHECKING

from quantwatt import registry

if TYPE_CHECKING:
    import torch

ALIGNMENT = 64  # bytes; what torch's allocator gives and vectorized products of the libraries take for granted


def library_of(settings):
    """The module of a `weights` entry whose format is a library's, or None where quantwatt holds the codes itself."""
    module = registry.load("formats", settings["format"])
    return module if hasattr(module, "LIBRARY") else None


def aligned(tensor: "torch.Tensor") -> "torch.Tensor":
    """The tensor, copied into memory that torch allocates where it does not begin at a multiple of 64 bytes.

    A tensor of a safetensors file is a view into the file, which begins anywhere; torch's int8 product crashes on it.
    """
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT else tensor
