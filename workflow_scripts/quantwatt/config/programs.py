"""Properties of the integer programs in a mixed method's entry: their candidates and the sides they decide."""

from collections.abc import Mapping
from typing import Any

SIDES = ("weights", "activations")
OF_DEVICE = ("milliseconds", "joules")  # budgets whose costs depend on the device


def names_of(program: Mapping[str, Any]) -> list[str]:
    """Names of the candidates that a program chooses from, each once."""
    named = program["candidates"]
    every = [name for group in named.values() for name in group] if isinstance(named, dict) else named
    return list(dict.fromkeys(every))


def sides(program: Mapping[str, Any], candidates: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The sides that a program decides: "weights", "activations" or both, in this order."""
    return [side for side in SIDES if any(side in candidates[name] for name in names_of(program))]


def is_swept(program: Mapping[str, Any]) -> bool:
    """Whether a program may have several choices, among which generated images decide."""
    return "bits" in program["budget"]


def has_several_choices(method: Mapping[str, Any]) -> bool:
    """Whether a mixed method has a program with several choices, among which generated images decide."""
    return any(is_swept(program) for program in method["allocation"]["programs"])


def needs_costs(method: Mapping[str, Any]) -> bool:
    """Whether a mixed method's programs need costs of layers that are measured on the device."""
    return any(unit in OF_DEVICE for program in method["allocation"]["programs"] for unit in program["budget"])
