"""Quantize inputs, rescale integer products and dequantize weights on the CPU, in one pass each.

The functions are in C (native/fused.c, native/few_tokens.c). Without a compiler, for float16, or on another device,
PyTorch's functions are used, with five to ten passes each.
"""

import ctypes
import math

import torch

from quantwatt.formats.activations import IntegerActivations, StaticGrid
from quantwatt.formats.packing import unpack
from quantwatt.formats.quantized_weight import QuantizedWeight
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.inference.native import address, library

TYPES_IN_C = (torch.float32, torch.bfloat16)
PER_THREAD = 1 << 19  # products with a packed weight that take one thread as long as waking up another one


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
    if (library := _library_for(images, images.dtype)) is None:
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
    if (library := _library_for(sums, dtype)) is None:
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


def dequantize(
    quantized: QuantizedWeight, weight_format: WeightFormat, columns: int, dtype: torch.dtype
) -> torch.Tensor:
    """Dequantize a packed weight: returns [rows, columns] of `dtype`.

    Args:
        quantized: QuantizedWeight whose codes are packed, [rows, bytes].
    """
    bits = weight_format.bits
    packed, scale, zero, index = quantized.codes, quantized.scale, quantized.zero, quantized.group_index
    if (library := _library_for(packed, dtype)) is None:
        quantized = QuantizedWeight(unpack(packed, bits, columns), scale, zero, group_index=index)
        return quantized.dequantize(weight_format).to(dtype)
    weight = torch.empty(len(packed), columns, dtype=dtype)
    values = weight_format.codebook
    zero = _zeros(quantized, weight_format)
    library.unpack(
        *(address(packed), bits, len(packed), columns, address(values), address(scale), address(zero)),
        *(scale.shape[1], weight_format.group_width(columns), address(index)),
        *(dtype == torch.bfloat16, address(weight), torch.get_num_threads()),
    )
    return weight


class _Weight(ctypes.Structure):
    """`Weight` of native/few_tokens.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "columns", "groups", "group", "bits")),
        *((name, ctypes.c_void_p) for name in ("packed", "values", "scale", "zero", "bias")),
        ("middle", ctypes.c_float),
    ]


class FewTokens:
    """Multiply few tokens by a packed weight, in C, which dequantizes on the fly.

    It holds addresses of tensors: who moves these must make it anew.

    Args (of the constructor):
        quantized: QuantizedWeight whose codes are packed, without a group index; columns: of it.
        bias: [rows] or None.
    """

    def __init__(
        self,
        quantized: QuantizedWeight,
        weight_format: WeightFormat,
        columns: int,
        bias: torch.Tensor | None,
    ):
        scale, zero, values = quantized.scale, quantized.zero, weight_format.codebook
        zero, bias = (None if tensor is None else tensor.float() for tensor in (zero, bias))
        self.held, self.rows = (quantized, zero, bias, values), len(scale)
        parts = map(address, (quantized.codes, values, scale, zero, bias))
        self.weight = _Weight(
            self.rows, columns, scale.shape[1], weight_format.group_width(columns), weight_format.bits, *parts,
            weight_format.middle,
        )  # fmt: skip
        self.at = ctypes.addressof(self.weight)
        self.multiply = library().multiply_packed  # ty: ignore[missing-union-attribute]  (few_tokens_in_c)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., rows] of float32 or bfloat16 inputs [..., columns]."""
        flat, shape, dtype = inputs.contiguous(), inputs.shape, inputs.dtype
        outputs = torch.empty(*shape[:-1], self.rows, dtype=dtype)
        tokens, threads = outputs.numel() // self.rows, torch.get_num_threads()
        threads = min(threads, 1 + tokens * self.rows * shape[-1] // PER_THREAD)
        self.multiply(self.at, flat.data_ptr(), dtype is torch.bfloat16, tokens, outputs.data_ptr(), threads)
        return outputs


def few_tokens_in_c(quantized: QuantizedWeight) -> bool:
    """Whether FewTokens computes a weight on this machine."""
    return quantized.group_index is None and hasattr(library(), "multiply_packed")


def _zeros(quantized, weight_format):
    """Return zero points, float32 in the shape of the scale; for codebooks they are 0."""
    if quantized.zero is not None:
        return quantized.zero.float()
    return torch.full_like(quantized.scale, weight_format.middle)


def _library_for(tensor, dtype):
    # torch.compile would trace the calls of C on tensors without memory, and leave the results uninitialized.
    supported = tensor.device.type == "cpu" and dtype in TYPES_IN_C and not torch.compiler.is_compiling()
    return library() if supported else None
