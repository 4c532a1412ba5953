"""A packed weight in C (native/packed.c, native/few_tokens.c): multiplied by few tokens, or unpacked row by row.

There is a path for each instruction set; all decode the same values. Without a compiler, or on another device,
PyTorch's functions unpack it (quantwatt.inference.kernels.unpacked).
"""

import ctypes
from dataclasses import dataclass

import torch

from quantwatt.formats.group_numbers import GroupNumbers
from quantwatt.formats.weight_format import WeightFormat
from quantwatt.inference.native import address, library

PATHS = ("plain C", "AVX2", "AVX-512", "AVX-512 with bfloat16")  # in the order of native/packed.h
# Types of a group's numbers, in the order of native/packed.h; uint8 and int8 are whole numbers.
TYPES = (torch.float32, torch.float16, torch.uint8, torch.int8, torch.float8_e8m0fnu, torch.float8_e4m3fn)
HALF_EXPONENT_BITS, HALF_BIAS = 5, 15  # of float16
PER_THREAD = 1 << 19  # products that take one thread as long as waking up another one


def paths() -> tuple[int, ...]:
    """Return the numbers of the PATHS that this CPU runs, the fastest last; empty without a compiler."""
    compiled = library()
    bits = 0 if compiled is None else compiled.packed_paths()
    return tuple(number for number in range(len(PATHS)) if bits >> number & 1)


class _Numbers(ctypes.Structure):
    """`Numbers` of native/packed.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("stored", "factor")),
        *((name, ctypes.c_int64) for name in ("type", "of_factor", "rows")),
    ]

    @classmethod
    def of(cls, numbers: GroupNumbers | None):
        if numbers is None:
            return cls()
        stored, factor, of_factor = numbers.stored, numbers.factor, 0
        if factor is not None and factor.dtype == torch.float16:
            of_factor = stored.shape[1] // factor.shape[1]
        return cls(address(stored), address(factor), TYPES.index(stored.dtype), of_factor, numbers.rows)


class _Weight(ctypes.Structure):
    """`Weight` of native/packed.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "columns", "groups", "group", "bits")),
        *((name, ctypes.c_int64) for name in ("minima", "exponent", "narrow", "half")),
        *((name, ctypes.c_void_p) for name in ("packed", "values", "bias", "group_index")),
        *((name, _Numbers) for name in ("scale", "zero")),
        *((name, ctypes.c_float) for name in ("middle", "shifted")),
    ]


@dataclass(frozen=True)
class Held:
    """Tensors of a packed weight [rows, columns].

    codes: [rows, bytes] uint8; scale, zero: of its groups; bias: [rows] or None.
    group_index: [columns] int32, or None where a group's columns are neighbours.
    nan_codes: whether some codes are NaN, which their conversion through float16 would not keep.
    """

    codes: torch.Tensor
    scale: GroupNumbers
    zero: GroupNumbers | None
    bias: torch.Tensor | None
    group_index: torch.Tensor | None
    nan_codes: bool


class PackedWeight:
    """A packed weight on the CPU. It holds addresses of tensors: who moves these must make it anew."""

    def __init__(self, held: Held, weight_format: WeightFormat, columns: int):
        rows, groups, values = len(held.codes), held.scale.stored.shape[1], weight_format.codebook
        bias = None if held.bias is None else held.bias.float()
        elements = None if held.nan_codes else getattr(weight_format, "elements", None)
        narrow, half = (_holds(dtype, values) for dtype in (torch.bfloat16, torch.float16))
        self.held, self.rows, self.columns = (held, bias, values), rows, columns
        self.weight = _Weight(
            *(rows, columns, groups, weight_format.group_width(columns), weight_format.bits, weight_format.minima),
            *(0 if elements is None else elements.exponent_bits, narrow, half),
            *map(address, (held.codes, values, bias, held.group_index)),
            *map(_Numbers.of, (held.scale, held.zero)),
            *(weight_format.middle, 1.0 if elements is None else 2.0 ** (HALF_BIAS - elements.bias)),
        )
        self.at, self.path, compiled = ctypes.addressof(self.weight), paths()[-1], library()
        self._multiply, self._unpack = compiled.multiply_packed, compiled.unpack  # ty: ignore[missing-union-attribute]

    def multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return [..., rows] of float32 or bfloat16 inputs [..., columns]; of a weight without group_index."""
        flat, shape, dtype = inputs.contiguous(), inputs.shape, inputs.dtype
        outputs = torch.empty(*shape[:-1], self.rows, dtype=dtype)
        tokens, threads = outputs.numel() // self.rows, torch.get_num_threads()
        threads = min(threads, 1 + tokens * self.rows * self.columns // PER_THREAD)
        self._multiply(
            self.at, self.path, flat.data_ptr(), dtype is torch.bfloat16, tokens, outputs.data_ptr(), threads
        )
        return outputs

    def unpacked(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the rows from `start` to `stop`, [rows, columns] float32 or bfloat16."""
        weight = torch.empty(stop - start, self.columns, dtype=dtype)
        threads = torch.get_num_threads()
        self._unpack(self.at, self.path, start, stop - start, dtype is torch.bfloat16, weight.data_ptr(), threads)
        return weight


def _holds(dtype, values):
    """Whether a type holds all values of a codebook, or without one all integers of 8 bits."""
    return values is None or torch.equal(values.nan_to_num(), values.to(dtype).float().nan_to_num())


def has_nan_codes(codes: torch.Tensor, weight_format: WeightFormat) -> bool:
    """Whether codes [rows, columns] of floats hold a NaN (or infinity) that float16 does not have at the same bits."""
    elements = getattr(weight_format, "elements", None)
    if elements is None or elements.exponent_bits == HALF_EXPONENT_BITS:
        return False
    highest = 2 ** (elements.bits - 1) - 1  # of magnitudes
    return elements.largest_code < highest and bool((codes & highest > elements.largest_code).any())
