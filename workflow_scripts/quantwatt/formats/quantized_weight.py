"""A weight in a format: its codes, the grid they stand on, and how groups of a row are cut and joined."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.formats.packing import pack, packed_bytes, unpack
from quantwatt.formats.weight_format import Grid, WeightFormat


def load_format(settings: Mapping[str, Any]) -> WeightFormat:
    """The format that a completed `weights` entry of a method describes."""
    return registry.load("formats", settings["format"]).Format.from_settings(settings)


@dataclass
class QuantizedWeight:
    """Codes of a weight, the grid they stand on, and what else its layer computes with.

    codes:  [rows, columns] uint8
    scale:  [rows, groups] in the format's scale type
    zero:   [rows, groups] in the format's zero type, or None where it has no zero point
    input_factor: [columns] by which the layer's input is multiplied first, or None
    group_index:  [columns] int32, each column's group, or None where it is column // group size
    down, up:     [rank, columns] and [rows, rank], a 16-bit branch that adds (x * input_factor) @ down.T @ up.T to the
                  output, or None
    first_output: [rows], what the layer gives for the first token of every sample, without bias, in place of the
                  product; or None where that is computed as all others
    activation_scale, activation_zero: [1] each, the input's grid where it is static, or None
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    input_factor: torch.Tensor | None = None
    group_index: torch.Tensor | None = None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    first_output: torch.Tensor | None = None
    activation_scale: torch.Tensor | None = None
    activation_zero: torch.Tensor | None = None

    def dequantize(self, weight_format: WeightFormat) -> torch.Tensor:
        """[rows, columns] float32, of the codes alone: without branch and input factor."""
        columns = self.codes.shape[1]
        group = self.group_index
        if group is None:
            group = torch.arange(columns, device=self.codes.device) // weight_format.group_width(columns)
        zero = None if self.zero is None else self.zero[:, group]
        return weight_format.decode(self.codes, self.scale[:, group], zero)

    def in_group_order(self) -> tuple[Self, torch.Tensor | None]:
        """The same weight with the columns of every group beside one another.

        Returns:
            (QuantizedWeight, the order [columns] in which its columns then stand, or None where they stood so).
        """
        if self.group_index is None:
            return self, None
        order = torch.argsort(self.group_index, stable=True)
        return replace(self, codes=self.codes[:, order], group_index=None), order

    def rows(self, start: int, stop: int) -> Self:
        """The QuantizedWeight of some rows; what belongs to columns is shared with this one."""
        own = {part: getattr(self, part) for part in ("codes", "scale", "zero", "up", "first_output")}
        return replace(self, **{part: None if own[part] is None else own[part][start:stop] for part in own})

    @classmethod
    def of_rows(cls, parts: Sequence[Self]) -> Self:
        """One QuantizedWeight of several, below one another, whose columns stand in the same groups."""
        zeros = [part.zero for part in parts if part.zero is not None]
        codes, scale = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scale"))
        return replace(parts[0], codes=codes, scale=scale, zero=torch.cat(zeros) if zeros else None)

    def state(self, weight_format: WeightFormat) -> dict[str, torch.Tensor]:
        """Tensors for a checkpoint, on the CPU and none sharing memory; codes packed to the format's bits."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        state["codes"] = pack(self.codes.cpu(), weight_format.bits)
        return {
            part: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for part, tensor in state.items()
            if tensor is not None
        }

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], weight_format: WeightFormat, columns: int) -> Self:
        """The inverse of `state`."""
        parts: dict[str, Any] = {field.name: state.get(field.name) for field in fields(cls)}
        return cls(**{**parts, "codes": unpack(state["codes"], weight_format.bits, columns)})


def quantize_to_nearest(weight: torch.Tensor, weight_format: WeightFormat) -> QuantizedWeight:
    """Fit every group's grid and round to it.

    Args:
        weight: [rows, columns] float32.
    Returns:
        QuantizedWeight.
    """
    scale, zero = fit_groups(weight, weight_format)
    column_group = torch.arange(weight.shape[1], device=weight.device) // weight_format.group_width(weight.shape[1])
    codes = weight_format.encode(weight, scale[:, column_group], None if zero is None else zero[:, column_group])
    return QuantizedWeight(codes, scale, zero)


def fit_groups(weight: torch.Tensor, weight_format: WeightFormat) -> Grid:
    """Grids of all groups of a weight: (scale, zero), each [rows, groups]; the last group may be narrower."""
    return join_grids([weight_format.fit(part) for part in split_groups(weight, weight_format)], len(weight))


def split_groups(weight: torch.Tensor, weight_format: WeightFormat) -> list[torch.Tensor]:
    """A weight [rows, columns] with one row per group: [[rows * whole groups, width]], and the rest [rows, narrower].

    Many groups are then one tensor, whatever their number.
    """
    columns = weight.shape[1]
    width = weight_format.group_width(columns)
    whole = columns - columns % width
    parts = [weight[:, :whole].reshape(-1, width)]
    return parts if whole == columns else [*parts, weight[:, whole:]]


def join_groups(parts: Iterable[torch.Tensor], rows: int) -> torch.Tensor:
    """The inverse of `split_groups`: [rows, columns]."""
    return torch.cat([part.reshape(rows, -1) for part in parts], dim=1)


def join_grids(grids: Iterable[Grid], rows: int) -> Grid:
    """(scale, zero), each [rows, groups], of the grids [(scale, zero)] of `split_groups`'s parts."""
    scale, zero = zip(*grids, strict=True)
    return join_groups(scale, rows), None if zero[0] is None else join_groups(zero, rows)


def stored_bits(rows: int, columns: int, weight_format: WeightFormat) -> float:
    """Average bits per weight: packed codes (rows padded to whole bytes) and every group's scale and zero point.

    Per tensor, too, every row stores its scale. A solver's group_index, a transform's input factor and 16-bit branch,
    and a static activation grid are not the format's and are not counted.
    """
    groups = -(-columns // weight_format.group_width(columns))
    grid_bits = 8 * sum(dtype.itemsize for dtype in (weight_format.scale_dtype, weight_format.zero_dtype) if dtype)
    return (8 * packed_bytes(columns, weight_format.bits) + groups * grid_bits) / columns


def wide_groups(allocation: Mapping[str, Mapping[str, Any]], columns: Mapping[str, int]) -> str | None:
    """A sentence on layers with fewer inputs than a group is to have, whose rows are then one group; else None.

    Args:
        allocation: {layer: {"weights": settings}}; columns: {layer: its inputs}.
    Raises:
        DataError: no layer has as many inputs as the group_size of a format that can do without groups, which then
            means what nobody would write.
    """
    sized = {}
    for name, formats in allocation.items():
        weights = formats["weights"]
        if weights.get("group_size"):
            sized.setdefault((weights["group_size"], "granularity" in weights), []).append(name)
    said = []
    for (size, asked), names in sized.items():
        wide = [name for name in names if columns[name] < size]
        if not wide:
            continue
        name = max(wide, key=lambda name: columns[name])
        if asked and len(wide) == len(names):
            raise DataError(
                f"layer {name}: a group_size of {size} is more than its {columns[name]} inputs, and none of the layers "
                "in this format has more; set a smaller one, or granularity: channel for one group a row."
            )
        said.append(f"{len(wide)} of {len(names)} layers with group_size {size} ({name}: {columns[name]} inputs)")
    return f"one group a row, as a group is larger than a row: {'; '.join(said)}." if said else None
