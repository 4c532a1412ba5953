"""Properties of a completed method entry, from its keys and from the schemas of its parts."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from quantwatt.artifacts.manifest import canonical_json
from quantwatt.registry import schema

COMPONENTS = "components"  # key of the components that a method quantizes beside the denoiser; absent where none
DRAWING = ("cache", "steps")  # keys of how a method draws, not of what it quantizes; absent where it has none
ADAPTERS = "adapters"  # key of a model's adapters, and of what a method does with them; absent where there is none
FOREIGN = "checkpoint"  # key of a checkpoint that others have quantized; absent where there is none


def is_mixed(method: Mapping[str, Any]) -> bool:
    """Whether the method's allocation is mixed: layers may have different formats."""
    return method["allocation"].get("name") == "mixed"


def quantizes_denoiser(method: Mapping[str, Any]) -> bool:
    """Whether the method quantizes any layer of the denoiser, or of a text model."""
    return method["weights"] is not None or is_mixed(method)


def is_quantized(method: Mapping[str, Any]) -> bool:
    """Whether the method quantizes any layer, of the denoiser or of another component."""
    return quantizes_denoiser(method) or bool(method.get(COMPONENTS))


def is_foreign(method: Mapping[str, Any]) -> bool:
    """Whether others have quantized the method's checkpoint."""
    return FOREIGN in method


def is_live(method: Mapping[str, Any]) -> bool:
    """Whether other code quantizes the pipeline when it is loaded ("x-live" in the loader's schema)."""
    return is_foreign(method) and schema(f"loaders/{method[FOREIGN]['loader']}").get("x-live", False)


def python_of(method: Mapping[str, Any]) -> str:
    """The interpreter of a method's jobs: of the environment that its checkpoint names, or `python`."""
    env = method.get(FOREIGN, {}).get("env")
    return f"{env}/bin/python" if env else "python"


def adapters_of(method: Mapping[str, Any]) -> str:
    """What a method does with the model's adapters: "fused", "kept" beside the layers, or "none".

    A checkpoint of others was made without them, so that they can only be kept.
    """
    return method.get(ADAPTERS, "kept" if is_foreign(method) else "fused")


def computing_in(settings: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings as a method loads it: in the method's dtype, if it sets one, and with adapters to be fused."""
    without = () if adapters_of(method) == "fused" else (ADAPTERS,)
    own = {key: value for key, value in settings.items() if key not in without}
    return own | ({"dtype": method["dtype"]} if method.get("dtype") else {})


def kept_adapters(settings: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """{"adapters": entries} for a checkpoint's manifest, of those that are kept beside its layers; {} without any."""
    kept = settings.get(ADAPTERS) if adapters_of(method) == "kept" else None
    return {ADAPTERS: kept} if kept else {}


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
    """The formats of weights and activations, by name, of entries that may have both; integer activations name none.

    A checkpoint of others may have all formats that its loader reads ("x-formats" in its schema).
    """
    entries = list(entries)
    loaders = [entry[FOREIGN]["loader"] for entry in entries if FOREIGN in entry]
    read = [name for loader in loaders for name in schema(f"loaders/{loader}").get("x-formats", ())]
    sides = [entry.get(side) for entry in entries for side in ("weights", "activations")]
    named = [settings["format"] for settings in sides if settings and "format" in settings]
    return list(dict.fromkeys([*named, *read]))


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
