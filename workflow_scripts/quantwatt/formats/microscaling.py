"""Microscaling formats (OCP MX 1.0): blocks of 32 inputs, and for each a power of two in 8 bits (E8M0) as its scale.

The specification takes the largest power of two in the block, divided by that of the element ("floor", section 6.3):
the block's largest values then may lie beyond the largest element, and become it. NVIDIA's libraries take the smallest
power of two at which nothing lies beyond ("up": cuBLAS's 1D block scaling; RCEIL, the default of torchao's inference
configurations, and so the default here). "even" rounds the largest magnitude to the element's mantissa first (EVEN of
torchao).

A row's last block may be narrower: it is as if padded with zeros. (torchao refuses such widths.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from quantwatt.formats.float_activations import BlockActivations
from quantwatt.formats.float_format import FloatFormat
from quantwatt.formats.group_numbers import GroupNumbers
from quantwatt.formats.minifloat import ELEMENTS, FLOAT32_MANTISSA, Minifloat
from quantwatt.formats.weight_format import Grid

BLOCK = 32
E8M0_BIAS, E8M0_NAN = 127, 255
LEAST_SCALE = 2.0**-E8M0_BIAS  # subnormal in float32
HALF_OF_MANTISSA = 1 << FLOAT32_MANTISSA - 1


def block_scale(largest: torch.Tensor, elements: Minifloat, rounding: str) -> torch.Tensor:
    """Return the scale of blocks, a power of two from 2**-127 to 2**127, float32 in the shape of `largest`.

    Args:
        largest: the largest magnitude of every block, float32; a NaN or infinity gives NaN.
        rounding: "floor", "even" or "up".
    """
    if rounding == "up":
        exponent = _exponent_above(largest / elements.largest)
    else:
        bits = largest.contiguous().view(torch.int32)
        if rounding == "even":
            bits = bits + (HALF_OF_MANTISSA >> elements.mantissa_bits)
        exponent = (bits >> FLOAT32_MANTISSA) - E8M0_BIAS - elements.largest_exponent
    return torch.where(largest.isfinite(), power_of_two(exponent), torch.nan)


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Return 2**exponent, float32, of whole numbers int32, which are limited to E8M0's range."""
    return decode_e8m0(exponent.clamp(-E8M0_BIAS, E8M0_BIAS).add_(E8M0_BIAS).to(torch.uint8))


def decode_e8m0(codes: torch.Tensor) -> torch.Tensor:
    """Return the scales of E8M0 codes, uint8 to float32; code 255 is NaN."""
    return codes.view(torch.float8_e8m0fnu).float()


def encode_e8m0(scale: torch.Tensor) -> torch.Tensor:
    """Return the E8M0 codes, uint8, of scales that are powers of two or NaN."""
    codes = scale.contiguous().view(torch.int32) >> FLOAT32_MANTISSA & 255  # 2**-127 is subnormal: 0, its code
    return torch.where(scale.isfinite(), codes, E8M0_NAN).to(torch.uint8)


def _exponent_above(scale):
    """Return the exponent of the least power of two that is not below each scale, int32."""
    bits = scale.contiguous().view(torch.int32)
    exponent = (bits >> FLOAT32_MANTISSA) - E8M0_BIAS + ((bits & (1 << FLOAT32_MANTISSA) - 1) > 0).int()
    return torch.where(scale <= LEAST_SCALE, -E8M0_BIAS, exponent)


@dataclass(frozen=True)
class MicroscalingFormat(FloatFormat):
    """Weights in an MX format: settings of resources/schemas/formats/mxfp8.schema.json and its like."""

    scale_dtype: ClassVar = torch.uint8  # E8M0

    element: str
    scale_rounding: str = "up"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(settings["element"], settings["scale_rounding"])

    @property
    def elements(self) -> Minifloat:
        return ELEMENTS[self.element]

    def group_width(self, columns: int) -> int:
        return min(BLOCK, columns)

    def fit(self, values: torch.Tensor) -> Grid:  # [rows, width] -> [rows, 1]
        return block_scale(values.abs().amax(dim=1, keepdim=True), self.elements, self.scale_rounding), None

    def storable(self, scale: torch.Tensor) -> torch.Tensor:
        return power_of_two(_exponent_above(scale / 1.5))  # the powers 1 and 2 are equally far from 1.5

    def pack_scale(self, scale: torch.Tensor, tensor_scale: torch.Tensor | None = None) -> torch.Tensor:
        return encode_e8m0(scale)

    def unpack_scale(self, stored: torch.Tensor, rows: int, tensor_scale: torch.Tensor | None = None) -> torch.Tensor:
        return decode_e8m0(stored)

    def held_grid(
        self, scale: torch.Tensor, zero: torch.Tensor | None, tensor_scale: torch.Tensor | None = None
    ) -> tuple[GroupNumbers, None]:
        return GroupNumbers(self.pack_scale(scale).view(torch.float8_e8m0fnu)), None


@dataclass(frozen=True)
class MicroscalingActivations(BlockActivations):
    """Inputs in an MX format: settings of resources/schemas/activations/mxfp8.schema.json and its like."""

    block_size: ClassVar = BLOCK

    element: str
    scale_rounding: str = "up"

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls(settings["element"], settings["scale_rounding"])

    @property
    def elements(self) -> Minifloat:
        return ELEMENTS[self.element]

    def rounded(self, blocks: torch.Tensor, static: Any = None) -> torch.Tensor:
        scale = self._scale(blocks)
        return self.elements.round(blocks / scale).mul_(scale)

    def encode(self, blocks: torch.Tensor, static: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (codes uint8 in the shape of the blocks, scales [tokens, blocks of a token] E8M0)."""
        scale = self._scale(blocks)
        return self.elements.encode(blocks / scale), encode_e8m0(scale).squeeze(-1).view(torch.float8_e8m0fnu)

    def _scale(self, blocks):
        return block_scale(blocks.abs().amax(dim=-1, keepdim=True), self.elements, self.scale_rounding)
