"""Integer linear layers on the CPU, each in one call of C (native/int8.c): quantize, multiply, rescale, add the bias.

There is a path for each instruction set, chosen when the layer first computes: AVX-512 VNNI, AVX-VNNI, and AVX2. Inputs
that several layers read in turn, such as those of the projections to queries, keys and values, are quantized once.
"""

import ctypes
import functools
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch

from quantwatt.formats.activations import IntegerActivations, StaticGrid
from quantwatt.inference.native import address, library

PANEL, STEP = 16, 8  # as in native/int8.c
PATHS = ("AVX2", "AVX-VNNI", "AVX-512 VNNI")  # in the order of native/int8.c, the fastest last
RUNS = (2, 4, 4)  # columns of an output that are next to each other, on each path
WIDE = PATHS.index("AVX2")  # the path whose codes take 16 bits
PER_THREAD = 1 << 21  # products that take one thread about as long as waking up another one
KEPT_BYTES = 1 << 26  # codes of inputs are kept up to this size


class _Layer(ctypes.Structure):
    """`Layer` of native/int8.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("columns", "outputs", "group")),
        *((name, ctypes.c_int32) for name in ("nibbles", "dynamic", "by_row", "symmetric", "lowest", "highest")),
        *((name, ctypes.c_float) for name in ("static_scale", "static_zero")),
        *((name, ctypes.c_void_p) for name in ("weight", "zero", "scale", "sums", "bias")),
    ]


@dataclass(frozen=True)
class Weight:
    """A weight as the C functions read it.

    packed: [panels, columns / run, 16, run] integers of 8 bits, or [panels, columns / run / 2, 16, run] pairs of codes
        of 4 bits, of columns that are filled up to a multiple of 8; uint8; a run is RUNS of the path
    zero: [groups, rows filled up to a multiple of 16] uint8, the code of 0 of pairs, else None
    scale: [groups, rows filled up] float32
    sums: [rows filled up] float32, sums of the integers, times their groups' scales where there are several groups
    """

    packed: torch.Tensor
    zero: torch.Tensor | None
    scale: torch.Tensor
    sums: torch.Tensor


def laid(codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor, group: int, bits: int, path: int) -> Weight:
    """Lay out a weight whose values are (code - zero) * scale.

    Args:
        codes: [rows, columns] uint8; zero: [rows, groups] or [rows, 1] uint8; scale: [rows, groups] float32.
        group: columns that share a scale, a multiple of STEP where there are several groups.
        bits: of a code; the integers of more than four, codes minus their zero points, must fit into 8 bits.
    """
    (rows, columns), groups = codes.shape, scale.shape[1]
    zero = zero.expand(rows, groups)
    of_column = torch.arange(columns) // (group if groups > 1 else columns)
    integers = codes.short() - zero.short()[:, of_column]
    parts = integers.float() * scale[:, of_column] if groups > 1 else integers.float()
    more, wide, run = -rows % PANEL, -columns % STEP, RUNS[path]
    packed = codes if bits <= 4 else integers.to(torch.int8).view(torch.uint8)
    packed = torch.nn.functional.pad(packed, (0, wide, 0, more))
    packed = packed.reshape(-1, PANEL, packed.shape[1] // run, run).transpose(1, 2)  # [panels, runs, 16, run]
    if bits <= 4:
        packed = packed[:, ::2] | packed[:, 1::2] << 4

    def filled(tensor):  # [rows, groups] -> [groups, rows filled up]
        return torch.nn.functional.pad(tensor, (0, 0, 0, more)).T.contiguous()

    sums = parts.double().sum(1, keepdim=True).float()
    return Weight(packed.contiguous(), filled(zero) if bits <= 4 else None, filled(scale.float()), filled(sums)[0])


def integers_of(packed: torch.Tensor, zero: torch.Tensor | None, rows: int, columns: int) -> torch.Tensor:
    """The inverse of `laid` for a weight of one group: [rows, columns] int8."""
    runs = packed if zero is None else torch.stack([packed & 15, packed >> 4], dim=2).flatten(1, 2)
    codes = runs.transpose(1, 2).flatten(2).flatten(0, 1)[:rows, :columns]
    return codes.view(torch.int8) if zero is None else (codes.short() - zero[0, :rows, None].short()).to(torch.int8)


@functools.cache
def paths() -> tuple[int, ...]:
    """The paths that this CPU runs, the fastest last; empty where there is no compiler or another kind of CPU."""
    compiled = library()
    if not hasattr(compiled, "int8_paths"):
        return ()
    bits = compiled.int8_paths()
    return tuple(path for path in range(len(PATHS)) if bits >> path & 1)


class Kept(threading.local):
    """The inputs that this thread quantized last, and their codes, which the next layer may need too."""

    def __init__(self) -> None:
        self.inputs, self.version, self.format = lambda: None, -1, None
        self.codes = self.grid = torch.empty(0)
        self.bytes = self.rows = 0

    def holds(self, inputs: torch.Tensor, wanted: tuple[Any, ...]) -> bool:
        """Whether the codes are of these inputs, unchanged since then, in the wanted format."""
        return self.inputs() is inputs and self.format == wanted and self.version == inputs._version

    def keep(self, inputs: torch.Tensor, wanted: tuple[Any, ...]) -> None:
        if inputs.is_inference():  # such a tensor does not count its changes
            self.forget()
        else:
            self.inputs, self.version, self.format = weakref.ref(inputs), inputs._version, wanted

    def forget(self) -> None:
        self.inputs = lambda: None

    def room(self, rows: int, size: int) -> None:
        """Make room for the codes of `rows` inputs, `size` bytes each, and forget what was there."""
        self.forget()
        if not rows * size <= self.bytes <= max(KEPT_BYTES, rows * size):
            self.bytes = rows * size
            self.codes = torch.empty(self.bytes, dtype=torch.uint8)
        if rows > self.rows:
            self.rows, self.grid = rows, torch.empty(2 * rows)


KEPT = Kept()


class Product:
    """The call of a layer. It holds addresses of tensors: who moves these must make it anew.

    Args (of the constructor):
        weight: Weight; bias: [rows filled up] float32, or None.
        static: (scale [1], zero [1]) of inputs that are not dynamic, else None.
        rows, columns: of the layer; group: as of `laid`; path: one of `paths()`.
    """

    def __init__(
        self,
        weight: Weight,
        bias: torch.Tensor | None,
        static: StaticGrid | None,
        rows: int,
        columns: int,
        group: int,
        inputs: IntegerActivations,
        path: int,
    ):
        by_row, symmetric = inputs.granularity == "token", inputs.symmetric
        lowest, highest, dynamic = inputs.lowest, inputs.highest, inputs.dynamic
        grid = (1.0, 0.0) if static is None else tuple(part.item() for part in static)
        self.layer = _Layer(
            columns, rows, group if len(weight.scale) > 1 else 0, weight.zero is not None, dynamic, by_row, symmetric,
            lowest, highest, *grid, *map(address, (weight.packed, weight.zero, weight.scale, weight.sums, bias)),
        )  # fmt: skip
        self.at, self.path, self.rows = ctypes.addressof(self.layer), path, rows
        self.held = (weight, bias)  # as long as their addresses are used
        self.size = -(-columns // STEP) * STEP << (path == WIDE)  # bytes of an input's codes
        self.format = (columns, path == WIDE, dynamic, by_row, lowest, highest, grid)
        self.multiply = library().int8_multiply  # ty: ignore[missing-union-attribute]  (`path` is one of paths())

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Compute [..., rows] of float32 or bfloat16 inputs [..., columns]."""
        flat, shape = inputs.contiguous(), inputs.shape
        outputs = torch.empty(*shape[:-1], self.rows, dtype=inputs.dtype)
        tokens = outputs.numel() // self.rows
        kept = KEPT
        quantized = kept.holds(inputs, self.format)
        if not quantized:
            kept.room(tokens, self.size)
        threads = min(torch.get_num_threads(), 1 + tokens * self.rows * shape[-1] // PER_THREAD)
        self.multiply(
            self.at, self.path, flat.data_ptr(), inputs.dtype is torch.bfloat16, tokens, kept.codes.data_ptr(),
            kept.grid.data_ptr(), quantized, outputs.data_ptr(), threads,
        )  # fmt: skip
        if not quantized:
            kept.keep(inputs, self.format)
        return outputs


def linear(
    inputs: torch.Tensor, weight: Weight, bias: torch.Tensor | None, static: StaticGrid | None, rows: int, columns: int,
    group: int, activation_format: IntegerActivations, path: int,
) -> torch.Tensor:  # fmt: skip
    """`Product` as an operator of PyTorch, which torch.compile takes into its graphs."""
    return torch.ops.quantwatt.int8_linear(
        inputs, *vars(weight).values(), bias, *(static or (None, None)), rows, columns, group,
        *vars(activation_format).values(), path,
    )  # fmt: skip


OPERATORS = torch.library.Library("quantwatt", "FRAGMENT")
OPERATORS.define(
    "int8_linear(Tensor inputs, Tensor packed, Tensor? zero, Tensor scale, Tensor sums, Tensor? bias, "
    "Tensor? static_scale, Tensor? static_zero, int rows, int columns, int group, int bits, str granularity, "
    "bool dynamic, bool symmetric, int path) -> Tensor"
)


@torch.library.impl(OPERATORS, "int8_linear", "CPU")
def _int8_linear(inputs, packed, zero, scale, sums, bias, static_scale, static_zero, rows, columns, group, *settings):
    *inputs_format, path = settings
    static = None if static_scale is None else (static_scale, static_zero)
    arguments = (bias, static, rows, columns, group, IntegerActivations(*inputs_format), path)
    return Product(Weight(packed, zero, scale, sums), *arguments)(inputs)


@torch.library.register_fake("quantwatt::int8_linear", lib=OPERATORS)
def _fake_int8_linear(inputs, packed, zero, scale, sums, bias, static_scale, static_zero, rows, *_):
    return inputs.new_empty(*inputs.shape[:-1], rows)
