"""The int8 product of quantwatt.inference.kernels.int_mm, with quantizing and rescaling compiled to one step each.

In eager mode, quantizing and rescaling pass over the tensors a dozen times, which takes all the time that the product
saves. Inductor compiles each to a Triton program, once for all shapes; inside a compiled denoiser, they are compiled as
parts of the denoiser.
"""

import torch

from quantwatt.inference.kernels import int_mm

NAME, PACKAGE, BOUND = "torch._int_mm fused by torch.compile", "triton", int_mm.BOUND
refusal = int_mm.refusal

quantize = torch.compile(int_mm.quantize, dynamic=True)
rescale = torch.compile(int_mm.rescale, dynamic=True)


class Layer(int_mm.Layer):
    quantize, rescale = staticmethod(quantize), staticmethod(rescale)
