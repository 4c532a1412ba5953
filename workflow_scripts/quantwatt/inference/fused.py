"""Quantize inputs and rescale integer products on the CPU, in one pass each.

The functions are in C (native/fused.c). Without a compiler, for float16, or on another device,
PyTorch's functions are used, with five to ten passes each.
"""

import ctypes
import math

import torch

from quantwatt.formats.activations import IntegerActivations, StaticGrid
from quantwatt.inference.native import address, library

TYPES_IN_C = (torch.float32, torch.bfloat16)


def quantize(
    inputs: torch.Tensor,
    activation_format: IntegerActivations,
    static: StaticGrid | None = None,
    halves: bool = False,
    padding: tuple[int, int] = (0, 0),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize inputs to unsigned codes: value = (code + activation_format.lowest - zero) * scale.

    Args:
        inputs: [rows, columns], or images [rows, height, width, channels], which are padded with the code of zero.
        static: (scale [1], zero [1]) of a format that is not dynamic.
        halves: return code // 2 of all rows, followed by code % 2 of all rows.
        padding: (above and below, left and right) of an image.
    Returns:
        (codes uint8 [rows, or 2 * rows, ...], scale [rows], zero [rows], both float32).
    """
    images = inputs.contiguous() if inputs.dim() == 4 else inputs.contiguous()[:, None, None]
    (rows, height, width, channels), (top, side) = images.shape, padding
    shape = (rows * (2 if halves else 1), height + 2 * top, width + 2 * side, channels)
    lowest = activation_format.lowest
    if (library := library_for(images, images.dtype)) is None:
        inside, scale, zero = activation_format.encode(images.flatten(1), static)
        scale = scale.expand(rows, 1)[:, 0]
        zero = torch.zeros_like(scale) if zero is None else zero.expand(rows, 1)[:, 0]
        codes = (zero - lowest).to(torch.uint8)[:, None, None, None].repeat(1, *shape[1:])
        codes[:, top : top + height, side : side + width] = (inside.short() - lowest).reshape(images.shape)
        codes = torch.cat([codes >> 1, codes & 1]) if halves else codes
    else:
        codes = torch.empty(shape, dtype=torch.uint8)
        scale, zero = (torch.empty(rows) for _ in range(2)) if static is None else (s.repeat(rows) for s in static)
        sizes = (rows, height, width * channels, top, side * channels)
        kind = (activation_format.dynamic, activation_format.granularity == "token", activation_format.symmetric)
        library.quantize(
            *(address(images), images.dtype == torch.bfloat16, *sizes, *kind, lowest, activation_format.highest),
            *(halves, address(codes), address(scale), address(zero), torch.get_num_threads()),
        )
    return codes.reshape(len(codes), *shape[4 - inputs.dim() + 1 :]), scale, zero


def rescale(
    sums: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    lowest: int,
    column_scale: torch.Tensor,
    column_sum: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    halves: bool = False,
) -> torch.Tensor:
    """Compute a layer's outputs from the product of `quantize`'s codes and the weight's integers.

    Args:
        sums: [rows, or 2 * rows where `halves`, ..., outputs] float32, the product.
        scale, zero, lowest: [rows], [rows] and a number: the grid of the codes.
        column_scale, column_sum: [outputs] float32, scale and sum of the weight's integers.
        bias: [outputs] float32 or None.
        dtype: of the outputs.
    Returns:
        [rows, ..., outputs].
    """
    rows, sums = len(scale), sums.contiguous()
    if (library := library_for(sums, dtype)) is None:
        sums = 2 * sums[:rows] + sums[rows:] if halves else sums
        scale, zero = (part.reshape(rows, *[1] * (sums.dim() - 1)) for part in (scale, zero))
        outputs = (sums - (zero - lowest) * column_sum) * (scale * column_scale)
        return (outputs if bias is None else outputs + bias).to(dtype)
    outputs = torch.empty(rows, *sums.shape[1:], dtype=dtype)
    positions = math.prod(sums.shape[1:-1])
    library.rescale(
        *(address(sums), halves, rows * positions, sums.shape[-1], positions),
        *(address(scale), address(zero), lowest, address(column_scale), address(column_sum), address(bias)),
        *(dtype == torch.bfloat16, address(outputs), torch.get_num_threads()),
    )
    return outputs


def library_for(tensor: torch.Tensor, dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the functions of C where they compute tensors like this one to `dtype`, else None."""
    # torch.compile would trace the calls of C on tensors without memory, and leave the results uninitialized.
    supported = tensor.device.type == "cpu" and dtype in TYPES_IN_C and not torch.compiler.is_compiling()
    return library() if supported else None
