"""A denoiser of random weights at its released size, made on the device from its configuration alone.

Nothing is downloaded. Time, energy and memory of a denoiser follow from its shapes, not from what its weights have
learnt, so that random weights draw the same work.
"""

import copy
import math
import zlib
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.denoisers import CONFIGURATIONS, DENOISERS, LATENT, TINY_LATENT
from quantwatt.artifacts.errors import Unsupported
from quantwatt.formats import convolution
from quantwatt.formats.library import library_of
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference import kernel_choice
from quantwatt.models.families import load_family

DTYPE = torch.bfloat16


def skeleton(name: str, size: str, device: str) -> torch.nn.Module:
    """The denoiser without memory for its parameters; buffers, such as position tables, are computed on the device."""
    load_family(DENOISERS[name].family)  # before diffusers: it declares operators that a CPU's torchvision lacks
    import diffusers
    from accelerate import init_empty_weights

    denoiser = DENOISERS[name]
    config = denoiser.config | (denoiser.tiny if size == "tiny" else {})
    with torch.device(device), init_empty_weights(include_buffers=False):
        return getattr(diffusers, denoiser.kind)(**config).eval().requires_grad_(False)


def build(name: str, size: str, configuration: str, device: str) -> tuple[torch.nn.Module, str, list[str]]:
    """The denoiser with random weights on the device, its linear layers rounded to nearest.

    Layers are made and rounded one by one: no more than one of them is in memory in 16 bits. Layers of one shape have
    the same values, each in memory of its own, because rounding every layer would take minutes and change no figure;
    and so that the same model is drawn from in every configuration.

    Returns:
        (the module, names of its kernels, names of its blocks of several layers).
    Raises:
        Unsupported: the device cannot compute the format.
    """
    model, (weights, activations) = skeleton(name, size, device), CONFIGURATIONS[configuration]
    blocks = [each for each in load_family(DENOISERS[name].family).blocks(model)
              if any(model.get_submodule(each).children())]  # fmt: skip
    for module in model.modules():  # before there are buffers of quantized layers, which have types of their own
        for buffer, values in module._buffers.items():
            module._buffers[buffer] = values.to(device, DTYPE if values.dtype == torch.float32 else None)
    kernels: set[str] = set()
    if weights is not None:
        made: dict[Any, Callable[[], torch.nn.Module]] = {}
        linears = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
        for layer in linears:
            linear = model.get_submodule(layer)
            key = linear.in_features, linear.out_features, linear.bias is not None
            if key not in made:
                fill(linear, device)
                made[key], kernel = quantized(linear, weights, activations, device)
                kernels.add(kernel)
            model.set_submodule(layer, made[key]())
    fill(model, device)
    return model, ", ".join(sorted(kernels)) or "torch linear", blocks


def fill(model: torch.nn.Module, device: str) -> None:
    """Give every parameter that has no memory random values on the device, those of its shape."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            torch.manual_seed(zlib.crc32(str(tuple(parameter.shape)).encode()))
            values = torch.empty(parameter.shape, dtype=DTYPE, device=device)
            if parameter.ndim >= 2:
                values.normal_(0, 1 / math.sqrt(parameter[0].numel()))
            elif name == "weight":
                values.fill_(1)  # of a normalization
            else:
                values.normal_(0, 0.02)
            module._parameters[name] = torch.nn.Parameter(values, requires_grad=False)


def quantized(
    linear: torch.nn.Linear, weights: dict[str, Any], activations: dict[str, Any] | None, device: str
) -> tuple[Callable[[], torch.nn.Module], str]:
    """(function that returns a new copy of the linear layer rounded to nearest, on the device; name of its kernel)."""
    shape, dtype = convolution.describe(linear), linear.weight.dtype
    if library := library_of(weights):
        if reason := library.unsupported(device) or library.simulated(device):
            raise Unsupported(reason)
        state = {part: tensor.to(device) for part, tensor in library.state(library.convert(linear, dtype)).items()}

        def restored():
            copied = {part: tensor.clone() for part, tensor in state.items()}
            return library.restore(copied, shape, linear.bias, dtype, device)

        return restored, library.LIBRARY
    kernel, reason = kernel_choice.kernel_for(
        {"weights": weights, "activations": activations, "parts": [], **shape}, device
    )
    if kernel is None:
        raise Unsupported(reason)
    weight_format = load_format(weights)
    rounded = quantize_to_nearest(linear.weight.float(), weight_format)
    layer = kernel.Layer.build(rounded, weight_format, activations, linear.bias, dtype).to(device)
    return lambda: copy.deepcopy(layer), kernel.NAME


def inputs_of(name: str, size: str, model: torch.nn.Module, images: int, device: str) -> dict[str, Any]:
    """Arguments of one call of the denoiser that serves a number of images of 1024² pixels (tiny: of 128²)."""
    torch.manual_seed(1)

    def random(*shape):
        return torch.randn(*shape, dtype=DTYPE, device=device)

    edge = TINY_LATENT if size == "tiny" else LATENT
    return {**DENOISERS[name].inputs(images, edge, model, random), "return_dict": False}
