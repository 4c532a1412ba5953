"""How weights are stored: a grid of values, and a packing to the format's true bits.

A format module offers a frozen dataclass of settings `Format` with

    bits                                         bits of one code
    group_size(columns) -> int                   inputs that share a scale
    fit(values) -> (scale, zero)                 [rows, width] -> [rows, 1] each
    encode(values, scale, zero) -> codes         elementwise, uint8; scale and zero broadcast
    decode(codes, scale, zero) -> values         elementwise, float32

Elementwise coding is what makes every solver work with every format: a solver chooses values, one column or one
matrix at a time, and never looks inside the format.
"""

from dataclasses import dataclass

import torch

from quantwatt import registry
from quantwatt.formats.packing import pack, packed_bytes, unpack


def load_format(settings):
    """The format that a completed `weights` entry of a method describes."""
    return registry.load("formats", settings["format"]).Format.from_settings(settings)


@dataclass
class QuantizedWeight:
    """Codes of a weight and the grid they stand on.

    codes:  [rows, columns] uint8
    scale:  [rows, groups] in the format's scale type
    zero:   [rows, groups] uint8, or None where the format has no zero point
    input_factor: [columns] by which the layer's input is multiplied first, where a transform asks for it
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    input_factor: torch.Tensor | None = None

    def dequantize(self, weight_format):
        """[rows, columns] float32."""
        columns = self.codes.shape[1]
        column_group = torch.arange(columns) // weight_format.group_size(columns)
        zero = None if self.zero is None else self.zero[:, column_group]
        return weight_format.decode(self.codes, self.scale[:, column_group], zero)

    def state(self, weight_format):
        """Tensors for a checkpoint: codes packed to the format's bits, scales, zero points."""
        state = {"codes": pack(self.codes, weight_format.bits), "scale": self.scale}
        state |= {"zero": self.zero, "input_factor": self.input_factor}
        return {part: tensor for part, tensor in state.items() if tensor is not None}

    @classmethod
    def from_state(cls, state, weight_format, columns):
        """The inverse of `state`."""
        codes = unpack(state["codes"], weight_format.bits, columns)
        return cls(codes, state["scale"], state.get("zero"), state.get("input_factor"))


def quantize_to_nearest(weight, weight_format):
    """Fit every group's grid and round to it.

    Args:
        weight: [rows, columns] float32.
    Returns:
        QuantizedWeight.
    """
    scale, zero = fit_groups(weight, weight_format)
    column_group = torch.arange(weight.shape[1]) // weight_format.group_size(weight.shape[1])
    codes = weight_format.encode(weight, scale[:, column_group], None if zero is None else zero[:, column_group])
    return QuantizedWeight(codes, scale, zero)


def fit_groups(weight, weight_format):
    """Grids of all groups of a weight: (scale, zero), each [rows, groups]; the last group may be narrower."""
    grids = [weight_format.fit(part) for part in weight.split(weight_format.group_size(weight.shape[1]), dim=1)]
    scale = torch.cat([scale for scale, _ in grids], dim=1)
    zero = None if grids[0][1] is None else torch.cat([zero for _, zero in grids], dim=1)
    return scale, zero


def stored_bits(rows, columns, weight_format):
    """Average bits per weight with scales and zero points."""
    groups = -(-columns // weight_format.group_size(columns))
    scale_bits = 8 * torch.empty(0, dtype=weight_format.scale_dtype).element_size()
    zero_bits = 8 if weight_format.has_zero else 0
    return (8 * packed_bytes(columns, weight_format.bits) + groups * (scale_bits + zero_bits)) / columns
