"""Layers and inputs for kernel tests, and the error of a kernel against the dequantized layer."""

import torch

from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference.linear import SimulatedLinear

INPUTS = ("many", "one-token", "empty", "three-dimensional", "non-contiguous")
TOKEN = {"bits": 8, "granularity": "token", "dynamic": True, "symmetric": True}
TOKEN_ASYMMETRIC = {**TOKEN, "symmetric": False}
STATIC = {"bits": 8, "granularity": "tensor", "dynamic": False, "symmetric": False}


def integer(bits, symmetric, group=None, **more):
    granularity = "channel" if group is None else "group"
    return {"format": "integer", "bits": bits, "granularity": granularity, "group_size": group, "symmetric": symmetric,
            "zero_point": "integer", **more}  # fmt: skip


def inputs_of(kind, columns, generator):
    if kind == "non-contiguous":
        return torch.randn(columns, 21, generator=generator).T
    shape = {"many": (45,), "one-token": (1,), "empty": (0,), "three-dimensional": (2, 19)}[kind]
    return torch.randn(*shape, columns, generator=generator)


def pair(kernel, weights, activations, shape, dtype=torch.float32, bias=True, act_order=False, device="cpu"):
    """(the kernel's layer, the dequantized one) of random weights of a shape (rows, columns), on a device."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = shape
    weight_format = load_format(weights)
    quantized = quantize_to_nearest(torch.randn(rows, columns, generator=generator), weight_format)
    if act_order:
        order = torch.randperm(columns, generator=generator)
        quantized.group_index = (torch.arange(columns) // weight_format.group_width(columns))[order].int()
    if activations is not None and not activations["dynamic"]:
        quantized.activation_scale, quantized.activation_zero = torch.tensor([0.03]), torch.tensor([-9.0])
    values = torch.randn(rows, generator=generator) if bias else None
    arguments = (quantized, weight_format, activations, values, dtype)
    return kernel.Layer.build(*arguments).to(device), SimulatedLinear.build(*arguments).to(device)


@torch.no_grad()
def error(layers, kind, dtype=torch.float32):
    """Norm of the difference of two layers' outputs, relative to the second's; 0 where both are empty alike."""
    own, reference = layers
    device = next(reference.buffers()).device
    inputs = inputs_of(kind, own.in_features, torch.Generator().manual_seed(1)).to(device, dtype)
    found, expected = own(inputs), reference(inputs)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if found.numel() == 0:
        return 0.0
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()
