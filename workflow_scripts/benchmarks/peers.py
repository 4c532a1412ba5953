"""Baselines that kernels are compared with: float products on this device, and quantized layers of other libraries.

A baseline (peer) is a function of a float32 Linear on the CPU, the dtype of its inputs and outputs, and the device. It
returns the layer, or raises any error where it cannot compute. `DTYPES` lists the peers that compute in one dtype only.
"""

import warnings

import torch

from quantwatt.formats.library import library_of

FLOAT32, BFLOAT16, PREPACKED = "float32", "bfloat16", "bfloat16 prepacked"
RECOMPILES = 1024  # limit per class of layers: every weight and every number of tokens is compiled anew


def plain(linear, dtype, device):
    """torch.nn.Linear."""
    layer = torch.nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device, dtype)
    layer.load_state_dict(linear.state_dict())
    return layer.requires_grad_(False)


def prepacked(linear, dtype, device):
    """oneDNN's product with a weight that is prepacked once, as torch.compile does when it freezes a model."""
    if device != "cpu":
        raise NotImplementedError("weights are prepacked on the CPU only")
    bias, packed = linear.bias.to(dtype), {}

    def product(inputs):
        if len(inputs) not in packed:  # the layout depends on the number of tokens
            packed.clear()
            packed[len(inputs)] = torch.ops.mkldnn._reorder_linear_weight(linear.weight.to(dtype), len(inputs))
        return torch.ops.mkldnn._linear_pointwise(inputs, packed[len(inputs)], bias, "none", [], "")

    return product


def library(**settings):
    """The layer in a library's format, restored from its state dict as a checkpoint's layers are."""

    def layer(linear, dtype, device):
        chosen = library_of(settings)
        if reason := chosen.unsupported(device):
            raise NotImplementedError(reason)
        state = chosen.state(chosen.convert(linear, dtype))
        shape = {"in_features": linear.in_features, "out_features": linear.out_features}
        return chosen.restore(state, shape, linear.bias, dtype, device)

    return layer


def compiled(peer):
    """A peer's layer under torch.compile; on the CPU its weights are frozen to constants, as in deployments."""

    def layer(linear, dtype, device):
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = RECOMPILES
        options = {"freezing": True} if device == "cpu" else {"max_autotune": True}
        return torch.compile(peer(linear, dtype, device), dynamic=False, options=options)

    return layer


def quantize_dynamic(linear, dtype, device):
    """PyTorch's older dynamic quantization: 8-bit weights per tensor, activations per tensor at run time."""
    if device != "cpu":
        raise NotImplementedError("it computes on the CPU only")
    from torch.ao import quantization

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still widely used
        return quantization.quantize_dynamic(torch.nn.Sequential(linear), {torch.nn.Linear}, dtype=torch.qint8)[0]


TORCHAO = {
    name: library(format="torchao", configuration=name, group_size=128) for name in ("int8-dynamic", "float8-dynamic")
}
FLOATS = {  # name: (format, provider, layer)
    FLOAT32: ("float32", "torch", plain),
    "float32 prepacked": ("float32", "oneDNN", prepacked),
    BFLOAT16: ("bfloat16", "torch", plain),
    PREPACKED: ("bfloat16", "oneDNN", prepacked),
}
LIBRARIES = {
    "torchao int8-dynamic": ("W8A8", "torchao", TORCHAO["int8-dynamic"]),
    "torchao float8-dynamic": ("float8", "torchao", TORCHAO["float8-dynamic"]),
    "torchao int4-weight-only": (
        *("W4A16 group 128", "torchao"),
        library(format="torchao", configuration="int4-weight-only", group_size=128),
    ),
    "optimum-quanto qint8": ("W8A16", "optimum-quanto", library(format="quanto", weights="qint8", group_size=128)),
    "bitsandbytes LLM.int8()": ("W8A8", "bitsandbytes", library(format="bitsandbytes-int8", threshold=0.0)),
    "torch quantize_dynamic": ("W8A8 per tensor", "torch", quantize_dynamic),
}
COMPILED = {
    "torchao int8-dynamic, compiled": ("W8A8", "torchao", compiled(TORCHAO["int8-dynamic"])),
    "torchao float8-dynamic, compiled": ("float8", "torchao", compiled(TORCHAO["float8-dynamic"])),
}
DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, "float32 prepacked": torch.float32,
          PREPACKED: torch.bfloat16, "torch quantize_dynamic": torch.float32}  # fmt: skip
