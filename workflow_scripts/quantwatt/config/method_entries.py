"""Complete and check the entries of methods: each part by itself, and the combination of parts."""

from collections.abc import Iterable, Mapping
from typing import Any

from quantwatt.config.methods import ADAPTERS, DRAWING, FOREIGN, is_external, is_library, is_mixed, quantizes_denoiser
from quantwatt.config.schemas import ConfigurationError, complete, complete_plugin
from quantwatt.registry import schema

INTEGER = "integer"  # the format of an entry of activations that names none


def complete_method(entry: Mapping[str, Any], file: str, where: str) -> dict[str, Any]:
    """Complete one method; an entry without `weights` is unquantized, unless its allocation is mixed."""
    method = complete(entry, schema("method"), file, where)
    _complete_drawing(method, file, where)
    if method.get(ADAPTERS) is None:
        method.pop(ADAPTERS, None)
    if method.get(FOREIGN) is None:
        method.pop(FOREIGN, None)
    else:
        _complete_checkpoint(method, file, where)
    if not quantizes_denoiser(method):
        for key in ("solver", "activations", "transforms", "schedule"):
            if method[key]:
                raise ConfigurationError(
                    f"{file}: {where}.{key}: there is nothing to quantize with it, because {where}.weights is missing."
                )
        return method
    return complete_parts(method, file, where)


def complete_parts(method: dict[str, Any], file: str, where: str) -> dict[str, Any]:
    """Complete what quantizes one network: solver, formats, transforms and allocation."""
    method["solver"] = complete_plugin(method["solver"] or {"name": "rtn"}, "solvers", "name", file, f"{where}.solver")
    method["weights"] = complete_weights(method["weights"], file, f"{where}.weights")
    method["activations"] = complete_activations(method["activations"], file, f"{where}.activations")
    method["transforms"] = complete_transforms(method["transforms"], file, f"{where}.transforms")
    method["allocation"] = complete_plugin(method["allocation"], "allocations", "name", file, f"{where}.allocation")
    for pattern, changed in method["allocation"].get("overrides", {}).items():
        _complete_override(method, changed, file, f"{where}.allocation.overrides.{pattern}")
    check_combination(method, file, where)
    return method


def _complete_drawing(method, file, where):
    """Complete how a method draws; keys without a value are left out."""
    for key in DRAWING:
        if method.get(key) is None:
            method.pop(key, None)
    if "cache" in method:
        method["cache"] = complete_plugin(method["cache"], "caches", "name", file, f"{where}.cache")
        if method["compile"]:
            raise ConfigurationError(
                f"{file}: {where}.compile: a cache decides at every step what to skip, and a compiled denoiser cannot; "
                "drop one of the two."
            )


def _complete_checkpoint(method, file, where):
    """Complete a checkpoint of others; what quantwatt would do to the weights is refused beside it."""
    method[FOREIGN] = complete_plugin(method[FOREIGN], "loaders", "loader", file, f"{where}.{FOREIGN}")
    for key in ("weights", "solver", "activations", "transforms", "schedule"):
        if method[key]:
            raise ConfigurationError(
                f"{file}: {where}.{key}: the checkpoint of others is quantized already; drop this key or "
                f"{where}.{FOREIGN}."
            )
    if method.get(ADAPTERS) == "fused":
        raise ConfigurationError(
            f"{file}: {where}.{ADAPTERS}: what others have quantized takes no adapter into its weights; set kept or "
            "none."
        )
    if is_mixed(method):
        raise ConfigurationError(f"{file}: {where}.allocation: the checkpoint of others has its own; drop the key.")


def complete_transforms(entries: Iterable[Mapping[str, Any]], file: str, where: str) -> list[dict[str, Any]]:
    return [complete_plugin(entry, "transforms", "name", file, f"{where}.{i}") for i, entry in enumerate(entries)]


def complete_weights(weights: Mapping[str, Any] | None, file: str, where: str) -> dict[str, Any] | None:
    """Complete a weight format; None is 16 bit."""
    if weights is None:
        return None
    weights = complete_plugin(weights, "formats", "format", file, where)
    if weights.get("granularity") == "group" and weights.get("group_size") is None:
        raise ConfigurationError(
            f"{file}: {where}.group_size: missing, and granularity 'group' needs it (64 or 128 are usual)."
        )
    if weights.get("granularity", "group") != "group" and weights.get("group_size") is not None:
        raise ConfigurationError(
            f"{file}: {where}.group_size: only granularity 'group' has groups; set it or drop the key."
        )
    if "bits" not in weights and not schema(f"formats/{weights['format']}").get("x-library", False):
        raise ConfigurationError(
            f"{file}: {where}.format: the schema of '{weights['format']}' gives no 'bits', the width of a code."
        )
    return weights


def complete_activations(activations: Mapping[str, Any] | None, file: str, where: str) -> dict[str, Any] | None:
    """Complete how inputs are quantized; None is 16 bit.

    Integers need no `format`, and their completed entry has none, as before there were others.
    """
    if activations is None:
        return None
    entry = complete_plugin({"format": INTEGER, **activations}, "activations", "format", file, where)
    if entry["format"] == INTEGER:
        del entry["format"]
    check_static(entry, file, where)
    return entry


def _complete_override(method, changed, file, where):
    """Complete an override of some layers' formats; keys that are missing are taken from the method's same format."""
    if "weights" in changed:
        weights = _over(method["weights"], changed["weights"])
        changed["weights"] = complete_weights(weights, file, f"{where}.weights")
        formats = {method["weights"]["format"], changed["weights"]["format"]}
        by_library = any(schema(f"formats/{name}").get("x-library", False) for name in formats)
        if len(formats) > 1 and (by_library or is_external(method)):
            raise ConfigurationError(
                f"{file}: {where}.weights.format: where a library rounds or stores weights, layers have one format; "
                "drop the key."
            )
    if changed.get("activations"):
        activations = _over(method["activations"] or {}, changed["activations"])
        changed["activations"] = complete_activations(activations, file, f"{where}.activations")


def _over(settings, changed):
    """Lay changed keys over the settings of a format; another format begins anew."""
    own = settings.get("format", INTEGER)
    return {**(settings if changed.get("format", own) == own else {}), **changed}


def check_combination(method: Mapping[str, Any], file: str, where: str) -> None:
    """Refuse combinations of solver, format, transforms and activations that cannot work together."""
    solver, weights, activations = method["solver"], method["weights"], method["activations"]
    library = is_library(method)
    outside = library or is_external(method)
    if is_mixed(method) and outside:
        name = weights["format"] if library else solver["name"]
        raise ConfigurationError(f"{file}: {where}.allocation.name: '{name}' knows uniform allocations only.")
    if library and solver["name"] != "rtn":
        raise ConfigurationError(
            f"{file}: {where}.solver.name: '{solver['name']}' cannot choose values for '{weights['format']}', a format "
            "that its library rounds itself; use rtn or drop the key."
        )
    if outside and method["transforms"]:
        name = weights["format"] if library else solver["name"]
        raise ConfigurationError(f"{file}: {where}.transforms: '{name}' takes layers as they are; drop the key.")
    if library and activations:
        raise ConfigurationError(
            f"{file}: {where}.activations: format '{weights['format']}' decides on activations itself; drop the key."
        )
    if is_external(method):
        _check_external(solver["name"], weights, file, f"{where}.weights")
    names = [transform["name"] for transform in method["transforms"]]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{file}: {where}.transforms: each transform can be used once.")
    for name in names[:-1]:
        if reason := schema(f"transforms/{name}").get("x-last"):
            raise ConfigurationError(f"{file}: {where}.transforms: '{name}' {reason}; put it last.")


def check_static(activations: Mapping[str, Any], file: str, where: str) -> None:
    if not activations["dynamic"] and activations.get("granularity", "tensor") != "tensor":
        raise ConfigurationError(
            f"{file}: {where}.granularity: a static grid (dynamic: false) is one per tensor; set 'tensor'."
        )


def _check_external(name, weights, file, where):
    """Refuse grids that external GPTQ libraries do not support."""
    if weights["format"] != "integer":
        raise ConfigurationError(
            f"{file}: {where}.format: '{name}' knows integer grids only, not '{weights['format']}'."
        )
    for key, refused, instead in (("granularity", "tensor", "channel or group"), ("zero_point", "float", "integer")):
        if weights[key] == refused:
            raise ConfigurationError(f"{file}: {where}.{key}: '{name}' has no '{refused}'; set {instead}.")
    if weights["symmetric"] and weights["narrow"]:
        raise ConfigurationError(f"{file}: {where}.narrow: '{name}' has no narrow symmetric grid; set false.")
