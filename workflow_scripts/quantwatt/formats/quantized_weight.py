"""A quantized weight: its codes and grid, and functions that split a weight into groups and join the groups."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.formats.weight_format import Grid, WeightFormat

WEIGHT = ("codes", "scale", "zero")  # what a format packs


def load_format(settings: Mapping[str, Any]) -> WeightFormat:
    """Return the format that a completed `weights` entry of a method describes."""
    return registry.load("formats", settings["format"]).Format.from_settings(settings)


@dataclass
class QuantizedWeight:
    """Codes of a weight, their grid, and the other tensors of its layer.

    codes:  [rows, columns] uint8
    scale:  [rows, groups] float32; stored as `pack_scale` of the format makes it
    zero:   [rows, groups] in the format's zero type, or None if the format has no zero point
    input_factor: [columns], by which the layer's input is multiplied first, or None
    rotation: [1] int32, the block of a Walsh-Hadamard transform of the input after that (quantwatt.formats.rotation),
              or None
    rotated_factor: [columns], by which the transformed input is multiplied, or None
    group_index:  [columns] int32, each column's group, or None if it is column // group size
    down, up:     [rank, columns] and [rows, rank], a 16-bit low-rank branch that adds x @ down.T @ up.T to the output,
                  where x is the input after factors and transform, or None
    first_output: [rows], the layer's output for the first token of every sample, without bias, which replaces the
                  product; or None if the first token is computed like all others
    activation_scale, activation_zero: [1] each, the input's static grid, or None
    tensor_scale: [1] float32, the factor that all of a format's scales share, and which they hold already; or None
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    input_factor: torch.Tensor | None = None
    rotation: torch.Tensor | None = None
    rotated_factor: torch.Tensor | None = None
    group_index: torch.Tensor | None = None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    first_output: torch.Tensor | None = None
    activation_scale: torch.Tensor | None = None
    activation_zero: torch.Tensor | None = None
    tensor_scale: torch.Tensor | None = None

    def dequantize(self, weight_format: WeightFormat) -> torch.Tensor:
        """Return [rows, columns] float32 from the codes only, without branch, factors and rotation."""
        columns = self.codes.shape[1]
        group = self.group_index
        if group is None:
            group = torch.arange(columns, device=self.codes.device) // weight_format.group_width(columns)
        zero = None if self.zero is None else self.zero[:, group]
        return weight_format.decode(self.codes, self.scale[:, group], zero)

    def in_group_order(self) -> tuple[Self, torch.Tensor | None]:
        """Reorder the columns so that the columns of every group are next to each other.

        Returns:
            (QuantizedWeight, the order [columns] of its columns, or None if the order did not change).
        """
        if self.group_index is None:
            return self, None
        order = torch.argsort(self.group_index, stable=True)
        return replace(self, codes=self.codes[:, order], group_index=None), order

    def rows(self, start: int, stop: int) -> Self:
        """Return the QuantizedWeight of some rows; tensors without rows are shared with this QuantizedWeight."""
        by_row = {part: getattr(self, part) for part in ("codes", "scale", "zero", "up", "first_output")}
        return replace(
            self, **{part: None if tensor is None else tensor[start:stop] for part, tensor in by_row.items()}
        )

    @classmethod
    def of_rows(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the rows of several QuantizedWeights whose columns have the same groups."""
        zeros = [part.zero for part in parts if part.zero is not None]
        codes, scale = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scale"))
        return replace(parts[0], codes=codes, scale=scale, zero=torch.cat(zeros) if zeros else None)

    def state(self, weight_format: WeightFormat) -> dict[str, torch.Tensor]:
        """Return the tensors for a checkpoint: on the CPU, without shared memory, codes packed to the format's bits."""
        state: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        codes, scale, zero = (state.pop(name) for name in WEIGHT)
        state |= weight_format.pack(
            codes.cpu(), scale.cpu(), None if zero is None else zero.cpu(), state["tensor_scale"]
        )
        return {
            part: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for part, tensor in state.items()
            if tensor is not None
        }

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], weight_format: WeightFormat, columns: int) -> Self:
        """The inverse of `state`."""
        codes, scale, zero = weight_format.unpack(state, columns)
        others: dict[str, Any] = {
            field.name: state.get(field.name) for field in fields(cls) if field.name not in WEIGHT
        }
        return cls(codes, scale, zero, **others)


def quantize_to_nearest(weight: torch.Tensor, weight_format: WeightFormat) -> QuantizedWeight:
    """Fit every group's grid and round the weight to the nearest values (RTN).

    Args:
        weight: [rows, columns] float32.
    Returns:
        QuantizedWeight.
    """
    weight_format = weight_format.bound(weight)
    codes, *grids = zip(*(weight_format.quantize(part) for part in split_groups(weight, weight_format)), strict=True)
    grid = join_grids(zip(*grids, strict=True), len(weight))
    return QuantizedWeight(join_groups(codes, len(weight)), *grid, tensor_scale=weight_format.tensor_scale)


def fit_groups(weight: torch.Tensor, weight_format: WeightFormat) -> Grid:
    """Fit the grids of all groups of a weight: (scale, zero), each [rows, groups]; the last group may be narrower."""
    weight_format = weight_format.bound(weight)
    return join_grids([weight_format.fit(part) for part in split_groups(weight, weight_format)], len(weight))


def split_groups(weight: torch.Tensor, weight_format: WeightFormat) -> list[torch.Tensor]:
    """Reshape a weight [rows, columns] to one row per group: [[rows * whole groups, width]], and [rows, narrower].

    All whole groups are one tensor. The second tensor holds the narrower last group, if there is one. Groups whose
    grids are stored together stay together. If rows share scales, every group is a tensor, [rows, width], so that its
    rows stay together.
    """
    columns = weight.shape[1]
    width = weight_format.fit_width(columns)
    if weight_format.shares_rows:
        return list(weight.split(width, dim=1))
    whole = columns - columns % width
    parts = [weight[:, :whole].reshape(-1, width)]
    return parts if whole == columns else [*parts, weight[:, whole:]]


def join_groups(parts: Iterable[torch.Tensor], rows: int) -> torch.Tensor:
    """The inverse of `split_groups`: [rows, columns]."""
    return torch.cat([part.reshape(rows, -1) for part in parts], dim=1)


def join_grids(grids: Iterable[Grid], rows: int) -> Grid:
    """Join the grids [(scale, zero)] of `split_groups`'s parts to (scale, zero), each [rows, groups]."""
    scale, zero = zip(*grids, strict=True)
    return join_groups(scale, rows), None if zero[0] is None else join_groups(zero, rows)


def stored_bits(rows: int, columns: int, weight_format: WeightFormat) -> float:
    """Return the average bits per weight: packed codes (rows padded to whole bytes), and all scales and zero points.

    With an integer grid per tensor, too, every row stores its scale. The group_index of a solver, the input factors and
    16-bit branch of a transform, and a static activation grid are not part of the format and are not counted.
    """
    return weight_format.row_bits(rows, columns) / columns


def wide_groups(allocation: Mapping[str, Mapping[str, Any]], columns: Mapping[str, int]) -> str | None:
    """Return a sentence about layers with fewer inputs than `group_size`, where a row is one group; None without any.

    Args:
        allocation: {layer: {"weights": settings}}; columns: {layer: number of its inputs}.
    Raises:
        DataError: all layers of a format that also works without groups have fewer inputs than its group_size, so that
            the group_size has no effect.
    """
    sized = {}
    for name, formats in allocation.items():
        weights = formats["weights"]
        if weights.get("group_size"):
            sized.setdefault((weights["group_size"], "granularity" in weights), []).append(name)
    notes = []
    for (size, has_granularity), names in sized.items():
        narrow = [name for name in names if columns[name] < size]
        if not narrow:
            continue
        name = max(narrow, key=lambda name: columns[name])
        if has_granularity and len(narrow) == len(names):
            raise DataError(
                f"layer {name}: a group_size of {size} is more than its {columns[name]} inputs, and none of the layers "
                "in this format has more; set a smaller one, or granularity: channel for one group per row."
            )
        notes.append(f"{len(narrow)} of {len(names)} layers with group_size {size} ({name}: {columns[name]} inputs)")
    return f"one group per row, because a group is larger than a row: {'; '.join(notes)}." if notes else None
