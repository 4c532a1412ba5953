"""Whether a kernel computes a format on this device: it is run once against the dequantized layer.

The weights and inputs are such as break a kernel that adds in too few bits: largest values of one sign beside random
ones. A library that is missing half of itself, a layout that was misread and sums that saturate all show.
"""

import functools
import json

import torch

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.formats.convolution import Convolution
from quantwatt.formats.quantized_weight import load_format, quantize_to_nearest
from quantwatt.inference.linear import SimulatedLinear

ROWS, COLUMNS, TOKENS = 64, 512, 40
SIZE = 8  # height and width of a convolution's input
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 1e-2}  # what outputs may be off by for their type alone


def failure(name, layer, device):
    """Why a kernel may not compute layers like this one, half a sentence that goes after its name; or None.

    Args:
        name: of a module in inference/kernels/; layer: as its `refusal` takes it, and has not refused; device: "cpu"
            or "cuda".
    Raises:
        DataError: torch itself does not compute on the device, which is no kernel's fault.
    """
    check_device(device)
    kernel_size = layer.get("kernel_size")
    formats = json.dumps({key: layer[key] for key in ("weights", "activations")}, sort_keys=True)
    return _trial(name, formats, None if kernel_size is None else tuple(kernel_size), device)


@functools.cache
def check_device(device):
    """Compute a sum on a device: torch may lack CUDA, its driver, or the code of this GPU, which is too old or too new.

    Raises:
        DataError: torch cannot.
    """
    try:
        torch.ones(2, device=device).sum().item()
    except Exception as refused:  # torch's errors of devices have no common type
        own = (str(refused).strip() or type(refused).__name__).splitlines()[0].rstrip(".")[:300]
        raise DataError(
            f"device: {device}: torch {torch.__version__} cannot compute there ({own}): install a build of torch for "
            "this GPU and its driver, or set device: cpu."
        ) from refused


@functools.cache
def _trial(name, formats, kernel_size, device):
    kernel, formats = registry.load("kernels", name), json.loads(formats)
    arguments = (kernel, formats["weights"], formats["activations"], device, kernel_size)
    try:
        errors = {dtype: relative_error(*arguments, dtype) for dtype in ROUNDING}
    except Exception as refused:  # noqa: BLE001  (a library may refuse in any way)
        own = (str(refused).strip() or type(refused).__name__).splitlines()[0].rstrip(".")[:300]
        return f"cannot compute it: {own}"
    for dtype, error in errors.items():
        if not error <= max(kernel.BOUND, ROUNDING[dtype]):
            return f"computes something else: its outputs are off by {error:.2g} of their size"
    return None


@torch.no_grad()
def relative_error(kernel, weights, activations, device, kernel_size=None, dtype=torch.float32):
    """Norm of the difference between a kernel's outputs and the dequantized layer's, relative to the latter's.

    Of many tokens or of one, whichever is larger.
    """
    generator = torch.Generator().manual_seed(0)  # its own: nothing else's random numbers shift
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
    own, reference = kernel.Layer.build(*arguments).to(device), SimulatedLinear.build(*arguments)

    def error(part):
        expected = reference(part).float()
        return ((own(part.to(device)).cpu().float() - expected).norm() / expected.norm()).item()

    few = inputs[-1:]  # which some kernels compute in another way than many
    return max(error(inputs), error(few))
