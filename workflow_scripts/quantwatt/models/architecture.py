"""Blocks and quantizable layers of a denoiser, detected in its module tree.

Repeated modules of a network are members of a ModuleList. A block is the smallest such member with several layers: a
transformer block, a residual block, an attention module of a UNet. A layer outside of all blocks (an embedding, a
projection between blocks, a downsampling convolution) is a block by itself.
"""

import functools
import inspect
import re

import torch

LAYERS = (torch.nn.Linear, torch.nn.Conv2d)
# Classes of diffusers.models.normalization whose layer `linear` computes several vectors at once: {class: vectors}.
MODULATIONS = {
    "AdaGroupNorm": 2,
    "AdaLayerNormContinuous": 2,
    "AdaLayerNormZeroSingle": 3,
    "LuminaRMSNormZero": 4,
    "AdaLayerNormSingle": 6,
    "AdaLayerNormZero": 6,
    "SD35AdaLayerNormZeroX": 9,
    "CogView3PlusAdaLayerNormZeroTextImage": 12,
}
# A weight that a module's code reads, and not only its type, dtype or device.
WEIGHT = re.compile(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape)|, torch\.Tensor\))")
LEAST = 2  # layers of a block: a member with a single layer (such as a GEGLU activation) is part of a larger block


def quantizable(denoiser: torch.nn.Module) -> list[str]:
    """Names of all linear layers and two-dimensional convolutions that are called, in the order of the module tree.

    A module may multiply by a layer's weight itself (attention pooling by torch's `multi_head_attention_forward`, as
    HunyuanDiT's): such a layer is never called, so none that computes in a format can take its place.
    """
    modules = dict(denoiser.named_modules())
    read = {f"{name}.{part}".removeprefix(".") for name, m in modules.items() for part in _weights_read(type(m))}
    return [name for name, module in modules.items() if isinstance(module, LAYERS) and name not in read]


@functools.cache
def _weights_read(kind):
    """The parts of a class of modules whose weights its `forward` reads."""
    try:
        return WEIGHT.findall(inspect.getsource(kind.forward))
    except (OSError, TypeError):  # code without a file
        return []


def blocks(denoiser: torch.nn.Module) -> list[str]:
    """Names of the modules that are quantized one after another; together they hold every quantizable layer once.

    They are in the order of the module tree; the order of execution is known only when the denoiser runs.
    """
    layers, blocks = quantizable(denoiser), []
    repeated = [(name, len(m)) for name, m in denoiser.named_modules() if isinstance(m, torch.nn.ModuleList)]
    members = [f"{name}.{index}" for name, count in repeated for index in range(count)]
    held = {member: [name for name in layers if name.startswith(f"{member}.")] for member in members}
    several = [member for member in members if len(held[member]) >= LEAST]
    smallest = [m for m in several if not any(other.startswith(f"{m}.") for other in several)]
    of_layer = {name: member for member in smallest for name in held[member]}
    for name in layers:
        block = of_layer.get(name, name)
        if block not in blocks:
            blocks.append(block)
    return blocks


def segments(denoiser: torch.nn.Module) -> dict[str, int]:
    """{layer: chunks} of the modulation layers: their output is split into chunks, such as shift, scale and gate."""
    from diffusers.models import normalization

    chunks = {getattr(normalization, name): count for name, count in MODULATIONS.items()}
    return {f"{name}.linear": chunks[type(m)] for name, m in denoiser.named_modules() if type(m) in chunks}
