"""PyTorch's int8 product as in quantwatt.inference.kernels.int_mm, what is before and after it one compiled step each.

Step by step, quantizing and rescaling pass over the tensors a dozen times and eat the whole gain. Inductor writes the
two as Triton programs, once for all shapes; inside a compiled denoiser they are parts of its own.
"""

import torch

from quantwatt.inference.kernels import int_mm

NAME, PACKAGE, BOUND = "torch._int_mm fused by torch.compile", "triton", int_mm.BOUND
refusal = int_mm.refusal

quantize = torch.compile(int_mm.quantize, dynamic=True)
rescale = torch.compile(int_mm.rescale, dynamic=True)


class Layer(int_mm.Layer):
    quantize, rescale = staticmethod(quantize), staticmethod(rescale)
