"""NVFP4: E2M1 elements in blocks of 16 with an E4M3 scale, times one float32 scale for the whole tensor.

As in torchao (`nvfp4_quantize` with a scale per tensor) and NVIDIA's libraries: the tensor's scale is its largest
magnitude over 448·6, at which the block that holds it has the largest E4M3 scale. Scales of blocks are normal E4M3
numbers, rounded to the nearest, ties to even, as all libraries do ("nearest"), or to the next larger one ("up"), so
that no value lies beyond the largest element.

In memory, a scale is the product of both, float32. Values are multiplied by its reciprocal, computed from both factors
in the libraries' order, because 1 / (product) may differ in its last bit, which decides ties.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch

from quantwatt.formats.activations import StaticGrid, finite_range
from quantwatt.formats.float_activations import BlockActivations
from quantwatt.formats.float_format import FloatFormat
from quantwatt.formats.group_numbers import GroupNumbers
from quantwatt.formats.minifloat import E2M1, E4M3, Minifloat
from quantwatt.formats.weight_format import Grid

BLOCK = 16
LEAST_SCALE = 2.0**E4M3.least_exponent  # of a block: the smallest normal number
SPLIT = 2.0**20 + 1  # keeps the four leading bits of a float32, those of an E4M3 number (Veltkamp's splitting)


def tensor_scale_of(largest: torch.Tensor) -> torch.Tensor:
    """Return the scale [1] of a tensor from its largest magnitude; 1 of zeros."""
    scale = largest.float() / (E4M3.largest * E2M1.largest)
    return torch.where(scale == 0, 1.0, scale).reshape(1)


def block_scale(largest: torch.Tensor, tensor_scale: torch.Tensor, rounding: str) -> torch.Tensor:
    """Return the E4M3 scale of blocks as float32, in the shape of `largest`; NaN stays NaN.

    Args:
        largest: the largest magnitude of every block; tensor_scale: [1].
        rounding: "nearest" or "up".
    """
    return _as_e4m3(largest / E2M1.largest / tensor_scale, rounding)


def _as_e4m3(scale, rounding):
    scale = scale.clamp(LEAST_SCALE, E4M3.largest)
    nearest = E4M3.round(scale)
    if rounding == "nearest":
        return nearest
    code = E4M3.encode(scale) + (nearest < scale)
    return E4M3.values(scale.device)[code.int()]


def reciprocal(blocks: torch.Tensor, tensor_scale: torch.Tensor) -> torch.Tensor:
    """Return what values are multiplied by: the reciprocal of the scales of their blocks and tensor."""
    return tensor_scale.reciprocal() / blocks


@dataclass(frozen=True)
class Format(FloatFormat):
    """Settings of resources/schemas/formats/nvfp4.schema.json, and the scale of the tensor that it is bound to."""

    scale_dtype: ClassVar = torch.uint8  # E4M3
    elements: ClassVar[Minifloat] = E2M1
    of_one_layer: ClassVar[bool] = True

    scale_rounding: str = "nearest"
    tensor_scale: torch.Tensor | None = field(default=None, compare=False)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(settings["scale_rounding"])

    def bound(self, weight: torch.Tensor) -> Self:
        if self.tensor_scale is not None:
            return self
        return replace(self, tensor_scale=tensor_scale_of(weight.abs().amax()))

    def group_width(self, columns: int) -> int:
        return min(BLOCK, columns)

    def fit(self, values: torch.Tensor) -> Grid:  # [rows, width] -> [rows, 1]
        tensor_scale = self._bound_scale()
        largest = values.abs().amax(dim=1, keepdim=True)
        return block_scale(largest, tensor_scale, self.scale_rounding) * tensor_scale, None

    def storable(self, scale: torch.Tensor) -> torch.Tensor:
        tensor_scale = self._bound_scale()
        return _as_e4m3(scale / tensor_scale, "nearest") * tensor_scale

    def snap(self, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        return E2M1.round(values * _reciprocal_again(scale, self._bound_scale())).mul_(scale)

    def scaled(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        tensor_scale = self._bound_scale()
        return values * reciprocal(_of_block(scale, tensor_scale), tensor_scale)

    def pack_scale(self, scale: torch.Tensor, tensor_scale: torch.Tensor | None = None) -> torch.Tensor:
        if tensor_scale is None:
            raise ValueError("an NVFP4 weight is stored with the scale of its tensor")
        return E4M3.encode(_of_block(scale, tensor_scale))

    def unpack_scale(self, stored: torch.Tensor, rows: int, tensor_scale: torch.Tensor | None = None) -> torch.Tensor:
        if tensor_scale is None:
            raise ValueError("an NVFP4 weight is stored with the scale of its tensor")
        blocks = E4M3.values(stored.device).index_select(0, stored.flatten().int())  # torch's cast is slower
        return blocks.view(stored.shape).mul_(tensor_scale)

    def held_grid(
        self, scale: torch.Tensor, zero: torch.Tensor | None, tensor_scale: torch.Tensor | None = None
    ) -> tuple[GroupNumbers, None]:
        if tensor_scale is None:
            raise ValueError("an NVFP4 weight is held with the scale of its tensor")
        blocks = self.pack_scale(scale, tensor_scale).view(torch.float8_e4m3fn)
        return GroupNumbers(blocks, tensor_scale.reshape(1, 1)), None

    def grid_bits(self, rows: int, columns: int) -> int:
        return super().grid_bits(rows, columns) + 32  # the scale of the tensor

    def _bound_scale(self):
        if self.tensor_scale is None:
            raise ValueError("NVFP4 has a scale for the whole weight: bind the format to it first")
        return self.tensor_scale


def _of_block(scale, tensor_scale):
    """Return the E4M3 scales of blocks, float32, from their products with the tensor's scale."""
    quotient = scale / tensor_scale  # one of them, but for its last bits
    high = quotient * SPLIT
    return high - (high - quotient)


@functools.lru_cache(maxsize=1)  # GPTQ rounds the 16 columns of a block with one tensor of scales
def _reciprocal_again(scale, tensor_scale):
    return reciprocal(_of_block(scale, tensor_scale), tensor_scale)


@dataclass(frozen=True)
class Activations(BlockActivations):
    """Settings of resources/schemas/activations/nvfp4.schema.json.

    dynamic: the scale of the tensor is computed at run time, as those of blocks always are; else it is calibrated.
    """

    block_size: ClassVar = BLOCK
    elements: ClassVar[Minifloat] = E2M1

    scale_rounding: str = "nearest"
    dynamic: bool = True

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(settings["scale_rounding"], settings["dynamic"])

    def calibrated(self, observed: Any) -> StaticGrid:
        low, high = finite_range(observed)
        scale = tensor_scale_of(torch.maximum(-low, high))
        return scale, torch.zeros_like(scale)

    def rounded(self, blocks: torch.Tensor, static: StaticGrid | None = None) -> torch.Tensor:
        scale, tensor_scale = self._scales(blocks, static)
        return E2M1.round(blocks * reciprocal(scale, tensor_scale)).mul_(scale * tensor_scale)

    def encode(
        self, blocks: torch.Tensor, static: StaticGrid | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (codes uint8 in the shape of the blocks, scales [tokens, blocks of a token] E4M3, that of all [1])."""
        scale, tensor_scale = self._scales(blocks, static)
        codes = E2M1.encode(blocks * reciprocal(scale, tensor_scale))
        return codes, scale.squeeze(-1).to(torch.float8_e4m3fn), tensor_scale

    def _scales(self, blocks, static):
        if not self.dynamic and static is None:
            raise ValueError("a static format needs the grid that calibration has fixed")
        tensor_scale = static[0] if static and not self.dynamic else tensor_scale_of(blocks.abs().amax())
        return block_scale(blocks.abs().amax(dim=-1, keepdim=True), tensor_scale, self.scale_rounding), tensor_scale

    def inside(self, ratio: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return ratio.abs() <= E4M3.largest * E2M1.largest

    def at_run_time(self) -> Self:
        return replace(self, dynamic=True)
