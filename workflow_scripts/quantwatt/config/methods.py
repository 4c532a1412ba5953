"""Properties of a completed method entry, from its keys and from the schemas of its parts."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from quantwatt.artifacts.manifest import canonical_json
from quantwatt.registry import schema

COMPONENTS = "components"  # key of the components that a method quantizes beside the denoiser; absent where none
DRAWING = ("cache", "steps")  # keys of how a method draws, not of what it quantizes; absent where it has none


def is_mixed(method: Mapping[str, Any]) -> bool:
    """Whether the method's allocation is mixed: layers may have different formats."""
    return method["allocation"].get("name") == "mixed"


def quantizes_denoiser(method: Mapping[str, Any]) -> bool:
    """Whether the method quantizes any layer of the denoiser, or of a text model."""
    return method["weights"] is not None or is_mixed(method)


def is_quantized(method: Mapping[str, Any]) -> bool:
    """Whether the method quantizes any layer, of the denoiser or of another component."""
    return quantizes_denoiser(method) or bool(method.get(COMPONENTS))


def draws_its_own_way(method: Mapping[str, Any]) -> bool:
    """Whether the method has a cache, or steps of its own."""
    return any(key in method for key in DRAWING)


def is_joined(method: Mapping[str, Any]) -> bool:
    """Whether the method's checkpoint is joined of others, as it draws its own way or quantizes further components."""
    return draws_its_own_way(method) or COMPONENTS in method


def of_denoiser(method: Mapping[str, Any]) -> dict[str, Any]:
    """The method without how it draws and its other components: equal ones have equal weights of the denoiser."""
    return {key: value for key, value in method.items() if key not in (*DRAWING, COMPONENTS)}


def of_component(method: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A component's entry with the type that it computes in: all that its weights depend on beside the model."""
    return {**method[COMPONENTS][name], "dtype": method["dtype"]}


def component_hash(entry: Mapping[str, Any]) -> str:
    """The name of the weights that an entry of `of_component` makes: 12 hexadecimal digits, equal for equal entries."""
    return hashlib.sha256(canonical_json(entry).encode()).hexdigest()[:12]


def is_library(method: Mapping[str, Any]) -> bool:
    """Whether a library rounds, stores and computes the weights ("x-library" in the format's schema)."""
    return bool(method["weights"]) and schema(f"formats/{method['weights']['format']}").get("x-library", False)


def is_external(method: Mapping[str, Any]) -> bool:
    """Whether the solver runs in a separate environment ("x-external" in the solver's schema)."""
    return bool(method["solver"]) and schema(f"solvers/{method['solver']['name']}").get("x-external", False)


def quantizing(method: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What quantizes one network each: the method itself for the denoiser, and the entries of its components."""
    return [method, *method.get(COMPONENTS, {}).values()]


def with_formats(method: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of an entry that may have weights and activations: itself, and what changes them for layers or steps.

    Args:
        method: completed; a mixed one with its candidates.
    """
    allocation = method.get("allocation") or {}
    parts = [*allocation.get("overrides", {}).values(), *allocation.get("candidates", {}).values()]
    return [method, *parts, *(method.get("schedule") or ())]


def formats_of(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """The formats of weights and activations, by name, of entries that may have both; integer activations name none."""
    sides = [entry.get(side) for entry in entries for side in ("weights", "activations")]
    return list(dict.fromkeys(settings["format"] for settings in sides if settings and "format" in settings))


def needs_calibration(method: Mapping[str, Any]) -> bool:
    """Whether static activations, a transform or the solver need calibration ("x-needs-calibration" in schemas).

    Args:
        method: completed, of which the denoiser is asked for; or a component's entry.
    """
    inputs = [entry.get("activations") for entry in with_formats(method)]
    if any(activations and not activations["dynamic"] for activations in inputs):
        return True
    plugins = [f"transforms/{transform['name']}" for transform in method["transforms"]]
    if method["solver"] and not is_external(method):
        plugins.append(f"solvers/{method['solver']['name']}")
    return any(schema(plugin).get("x-needs-calibration", False) for plugin in plugins)
