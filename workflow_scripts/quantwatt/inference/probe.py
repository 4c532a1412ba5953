"""Test whether a kernel computes a format on this device: compare it once with the dequantized layer.

Half of the weights and inputs are the largest values with one sign, half are random, so that a kernel that sums in too
few bits fails. The test also detects an incomplete library and a misread layout.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.formats.convolution import Convolution
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference.kernels import Kernel
from quantwatt.inference.linear import SimulatedLinear

ROWS, COLUMNS, TOKENS = 64, 512, 40
SIZE = 8  # height and width of a convolution's input
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 1e-2}  # relative error that the type of the outputs alone may cause


def failure(name: str, layer: Mapping[str, Any], device: str) -> str | None:
    """Return why a kernel may not compute layers like this one, or None.

    Args:
        name: of a module in inference/kernels/.
        layer: a layer that the module's `refusal` accepts.
        device: "cpu" or "cuda".
    Returns:
        Half a sentence that follows the kernel's name, or None.
    Raises:
        DataError: torch itself does not compute on the device, which is not the kernel's fault.
    """
    check_device(device)
    kernel_size = layer.get("kernel_size")
    formats = json.dumps({key: layer[key] for key in ("weights", "activations")}, sort_keys=True)
    return _trial(name, formats, None if kernel_size is None else tuple(kernel_size), device)


@functools.cache
def check_device(device: str) -> None:
    """Compute a sum on a device: torch may lack CUDA, the driver, or code for this GPU (too old or too new).

    Raises:
        DataError: torch cannot compute on the device.
    """
    try:
        torch.ones(2, device=device).sum().item()
    except Exception as error:  # torch's device errors have no common type
        message = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:300]
        raise DataError(
            f"device: {device}: torch {torch.__version__} cannot compute there ({message}): install a build of torch "
            "for this GPU and its driver, or set device: cpu."
        ) from error


@functools.cache
def _trial(name, formats, kernel_size, device):
    kernel: Any = registry.load("kernels", name)
    formats = json.loads(formats)
    arguments = (kernel, formats["weights"], formats["activations"], device, kernel_size)
    try:
        errors = {dtype: relative_error(*arguments, dtype) for dtype in ROUNDING}
    except Exception as error:  # noqa: BLE001  (a library may raise any type)
        message = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:300]
        return f"cannot compute it: {message}"
    for dtype, error in errors.items():
        if not error <= max(kernel.BOUND, ROUNDING[dtype]):
            return f"computes something else: its outputs are off by {error:.2g} of their size"
    return None


@torch.no_grad()
def relative_error(
    kernel: Kernel,
    weights: Mapping[str, Any],
    activations: Mapping[str, Any] | None,
    device: str,
    kernel_size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Return the norm of (kernel's outputs - dequantized layer's outputs), relative to the norm of the latter.

    It is the larger of the errors for many tokens and for one token.
    """
    generator = torch.Generator().manual_seed(0)  # torch's global random numbers are not changed
    area = 1 if kernel_size is None else kernel_size[0] * kernel_size[1]
    channels = COLUMNS if kernel_size is None else max(1, COLUMNS // area // 16) * 16
    weight = torch.randn(ROWS, channels * area, generator=generator)
    weight[: ROWS // 2] = weight[: ROWS // 2].abs().amax(dim=1, keepdim=True)  # all columns at the grid's end
    bias = torch.randn(ROWS, generator=generator)
    shape = (TOKENS, channels) if kernel_size is None else (2, channels, SIZE, SIZE)
    inputs = torch.randn(shape, generator=generator).to(dtype)
    inputs[: shape[0] // 2] = inputs[: shape[0] // 2].abs().amax()
    geometry = None
    if kernel_size is not None:
        top, left = (size // 2 for size in kernel_size)
        geometry = Convolution(kernel_size, (1, 1), (left, left, top, top), "zeros", (1, 1), 1)
    weight_format = load_format(weights)
    quantized = quantize_to_nearest(weight, weight_format)
    if activations is not None and not activations["dynamic"]:
        quantized.activation_scale = torch.full((1,), inputs.float().abs().amax() / 2 ** (activations["bits"] - 1))
        quantized.activation_zero = torch.zeros(1)
    arguments = (quantized, weight_format, activations, bias, dtype, geometry)
    quantized_layer, reference = kernel.Layer.build(*arguments).to(device), SimulatedLinear.build(*arguments)

    def error(part):
        expected = reference(part).float()
        return ((quantized_layer(part.to(device)).cpu().float() - expected).norm() / expected.norm()).item()

    few = inputs[-1:]  # some kernels compute few tokens in another way
    return max(error(inputs), error(few))
