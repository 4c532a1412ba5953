"""PyTorch's tinygemm as in kernels/tinygemm.py, with dequantization compiled to one Triton program."""

import torch

from quantwatt.inference.kernels import tinygemm

NAME, PACKAGE, BOUND = "torch._weight_int4pack_mm fused by torch.compile", "triton", tinygemm.BOUND
refusal = tinygemm.refusal

dequantized = torch.compile(tinygemm.dequantized, dynamic=True)


class Layer(tinygemm.Layer):
    dequantized = staticmethod(dequantized)
