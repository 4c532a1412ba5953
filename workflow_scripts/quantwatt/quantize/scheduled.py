"""Quantize a denoiser whose layers have other formats in other ranges of a drawing's steps.

Ranges in which all layers have the same formats are one network. Each network is quantized as a whole, on the
calibration samples of its own steps; the one with most steps comes first. A layer that has the same format in several
networks is solved once, in the first of them, and the others take it as it is.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from quantwatt.artifacts import step_ranges
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.layer_variants import stored_as
from quantwatt.formats.convolution import Convolution
from quantwatt.models.family import Family
from quantwatt.quantize import sequential

SHAPE = {"in_features", "out_features", "part_of", "skips", "first_token", *(each.name for each in fields(Convolution))}


@dataclass
class Network:
    """The formats of all layers in some ranges. ranges: their numbers; layers: {layer: formats}; samples: indices."""

    ranges: list[int]
    layers: Mapping[str, Mapping[str, Any]]
    samples: list[int]


@dataclass
class CalibrationSet:
    """What `sequential.quantize` calibrates with, and the drawings that it was recorded from.

    samples: {denoiser input: [samples, ...]}; rows: [{"step", "prompt"}] of each sample; steps: of a drawing.
    """

    samples: Mapping[str, torch.Tensor]
    rows: Sequence[Mapping[str, Any]]
    batch: int
    steps: int


def networks(schedule: Sequence[Mapping[str, Any]], calibration: CalibrationSet | None = None) -> list[Network]:
    """Return the different networks of a schedule, the one with most steps first.

    Args:
        schedule: [{"steps", "layers"}] as `quantwatt.allocate.ranges.allocate_ranges` returns.
        calibration: without it a range that takes the rest counts as the longest.
    Raises:
        DataError: the ranges do not fit into the drawings of the calibration, or it has no sample of a network's steps.
    """
    ranges = [entry["steps"] for entry in schedule]
    longest = 1 + sum(filter(None, ranges))
    taken = [longest if count is None else count for count in ranges]
    if calibration:
        try:
            taken = step_ranges.counts(ranges, calibration.steps)
        except DataError as error:
            raise DataError(f"schedule: {error} (calibration.steps).") from error
    found = {}
    for index, entry in enumerate(schedule):
        if entry["layers"]:
            key = json.dumps(entry["layers"], sort_keys=True)
            found.setdefault(key, Network([], entry["layers"], [])).ranges.append(index)
    if calibration:
        in_range = [step_ranges.range_of(row["step"], taken) for row in calibration.rows]
        for network in found.values():
            network.samples = [i for i, index in enumerate(in_range) if index in network.ranges]
            if not network.samples:
                named = step_ranges.words(ranges)[network.ranges[0]]
                raise DataError(f"calibration.timesteps: no sample is of {named} of the schedule; record more of them.")
    return sorted(found.values(), key=lambda network: -sum(taken[index] for index in network.ranges))


def quantize(
    load: Callable[[], torch.nn.Module],
    family: Family,
    schedule: Sequence[Mapping[str, Any]],
    method: Mapping[str, Any],
    calibration: CalibrationSet | None = None,
    device: str = "cpu",
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, dict[str, Any]]]:
    """Quantize every layer in every format that the schedule gives it.

    Args:
        load: returns the float denoiser on the CPU, anew at each call.
        schedule: [{"steps", "layers": {layer: formats}}], the ranges of steps.
        method: a completed method, of which solver and transforms are read.
    Returns:
        {layer: state} and {layer: report} as `sequential.quantize`, but for layers whose format is not the same in all
        ranges: their state holds the parts of all variants, and their report is as
        `quantwatt.artifacts.layer_variants` says.
    Raises:
        DataError: as `sequential.quantize` and `networks`.
    """
    solved = {}  # {layer: {formats, as JSON: (state, report)}}
    built = {}  # {(layer, formats, as JSON): module} of those that further networks have, too
    left = networks(schedule, calibration)
    while left:
        network, left = left[0], left[1:]
        known = {name: built[key] for name, f in network.layers.items() if (key := (name, _key(f))) in built}
        if known.keys() == network.layers.keys():
            continue
        denoiser = load()
        states, reports = sequential.quantize(
            denoiser,
            family,
            network.layers,
            method,
            *_of_network(network, calibration),
            device=device,
            origins=None if calibration is None else [calibration.rows[i]["prompt"] for i in network.samples],
            solved_layers=known,
        )
        for name, state in states.items():
            key = _key(network.layers[name])
            solved.setdefault(name, {})[key] = state, reports[name]
            if any(_key(other.layers.get(name)) == key for other in left):
                built[name, key] = denoiser.get_submodule(name)
    joined = {name: _joined(name, solved[name], schedule) for name in _in_order(schedule)}
    return {name: state for name, (state, _) in joined.items()}, {name: report for name, (_, report) in joined.items()}


def _in_order(schedule):
    """The names of all layers that are quantized in some range, in the model's order as far as one range has it."""
    return dict.fromkeys(
        name for entry in sorted(schedule, key=lambda entry: -len(entry["layers"])) for name in entry["layers"]
    )


def _key(formats):
    return json.dumps(formats, sort_keys=True)


def _of_network(network, calibration):
    """The samples of a network's steps, and how many make a forward pass; (None, None) without calibration."""
    if calibration is None:
        return None, None
    return {name: tensor[network.samples] for name, tensor in calibration.samples.items()}, calibration.batch


def _joined(name, variants, schedule):
    """(state, report) of a layer from those of its variants, {formats as JSON: (state, report)}."""
    numbers = {key: number for number, key in enumerate(variants)}
    layers = [entry["layers"].get(name) for entry in schedule]
    ranges = [None if formats is None else numbers[_key(formats)] for formats in layers]
    parts, reports = zip(*variants.values(), strict=True)
    if set(ranges) == {0}:
        return parts[0], reports[0]
    state, own = {}, []
    for number, (tensors, report) in enumerate(zip(parts, reports, strict=True)):
        equal = {part: _first_equal(parts[:number], part, tensor) for part, tensor in tensors.items()}
        shares = {part: first for part, first in equal.items() if first is not None}
        state |= {stored_as(part, number): tensor for part, tensor in tensors.items() if part not in shares}
        own.append(report | ({"shares": shares} if shares else {}))
    shape = {key: value for key, value in own[0].items() if key in SHAPE}
    variants = [{key: value for key, value in report.items() if key not in SHAPE} for report in own]
    return state, shape | {"variants": variants, "ranges": ranges}


def _first_equal(parts, name, tensor):
    """The number of the first variant with the same part, which is then stored once; None if there is none."""
    for number, tensors in enumerate(parts):
        other = tensors.get(name)
        if other is not None and other.dtype == tensor.dtype and torch.equal(other, tensor):
            return number
    return None
