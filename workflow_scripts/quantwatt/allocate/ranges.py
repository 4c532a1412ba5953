"""Assign formats to layers in every range of a drawing's steps, as a method's schedule says."""

from collections.abc import Mapping
from typing import Any

from quantwatt.allocate.allocation import Layers, allocate
from quantwatt.config.methods import is_mixed

SIDES = ("weights", "activations")


def allocate_ranges(
    layers: Layers, method: Mapping[str, Any], method_name: str, **found: Any
) -> dict[str, Any] | list[dict[str, Any]]:
    """Return the formats of every layer; with a schedule, [{"steps", "layers": the formats in these steps}].

    Args and errors as of `quantwatt.allocate.allocation.allocate`. In unquantized steps no layer has a format.
    """
    if not method.get("schedule"):
        return allocate(layers, method, method_name, **found)
    ranges = []
    for index, entry in enumerate(method["schedule"]):
        options = found | ({"of_range": index} if is_mixed(method) else {})
        formats = {} if is_unquantized(entry) else allocate(layers, in_range(method, entry), method_name, **options)
        ranges.append({"steps": entry["steps"], "layers": formats})
    return ranges


def is_unquantized(entry: Mapping[str, Any]) -> bool:
    """Whether no layer is quantized in a range of a completed schedule."""
    return "weights" in entry and entry["weights"] is None


def in_range(method: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method with the formats that it has in a range of its schedule."""
    return {**method, **{side: entry[side] for side in SIDES if side in entry}}
