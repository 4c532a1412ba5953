"""Assign a format to every layer."""

import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from quantwatt import registry
from quantwatt.allocate import blocks
from quantwatt.artifacts.errors import DataError
from quantwatt.config import methods
from quantwatt.registry import schema

Layers = Mapping[str, Mapping[str, Any]]  # {name: description} of the model manifest, in execution order


def allocate(layers: Layers, method: Mapping[str, Any], method_name: str, **found: Any) -> dict[str, dict[str, Any]]:
    """Return the formats of every layer that a method quantizes.

    Args:
        layers: {name: {"in_features", "out_features"}} of the model manifest, in execution order.
        method: a completed method.
        found: results of the integer programs of a mixed allocation (quantwatt/allocate/allocations/mixed.py).
    Returns:
        {name: {"weights": settings, "activations": settings or None}}; empty for the unquantized method. Layers that
        the blocks of the method's format do not fit have another one (blocks.py), and a warning says so. A layer NAME
        that a transform splits is replaced by its parts NAME.0, NAME.1, ...; the parts of a convolution have "skips",
        the channels of each part. Layers whose first token is computed separately have "first_token".
    Raises:
        DataError: the format does not fit a layer, a pattern matches no layer, or a transform applies to no layer.
    """
    if not methods.quantizes_denoiser(method):
        return {}
    if methods.is_library(method) or methods.is_external(method):  # both support linear layers only
        layers = {name: layer for name, layer in layers.items() if "kernel_size" not in layer}
    transforms = [transform["name"] for transform in method["transforms"]]
    layers = taken_apart(layers, transforms)
    kept = ["part_of", "skips"]
    for transform, mark, description in _marks(transforms):
        if not any(mark in layer for layer in layers.values()):
            raise DataError(
                f"methods.{method_name}.transforms: '{transform}' has no layer that {description} in this model."
            )
        kept.append(mark)
    module = registry.load("allocations", method["allocation"]["name"])
    formats = module.allocate(layers, method, method_name, **found)
    formats, note = blocks.fit_all(formats, layers, f"methods.{method_name}")
    if note:
        print(f"warning: {note}", file=sys.stderr)
    return {
        name: {**layer_formats, **{key: layers[name][key] for key in kept if key in layers[name]}}
        for name, layer_formats in formats.items()
    }


def tried(layers: Layers, sensitivity: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """Return {layer: description} of the layers that a sensitivity analysis measures, in the model's order.

    Args:
        layers: from the model manifest; sensitivity: a completed entry; name: the entry's name, for messages.
    Raises:
        DataError: a pattern matches no layer, or a candidate does not fit a layer.
    """
    layers = taken_apart(layers, [transform["name"] for transform in sensitivity["transforms"]])
    excluded = matching(layers, sensitivity["exclude"], f"sensitivities.{name}.exclude")
    measured = {layer: description for layer, description in layers.items() if layer not in excluded}
    for candidate, formats in sensitivity["candidates"].items():
        blocks.check_candidate(formats.get("weights"), measured, f"sensitivities.{name}.candidates.{candidate}")
    return measured


def first_tokens(layers: Layers, sensitivity: Mapping[str, Any]) -> set[str]:
    """Return the names of the measured layers whose first token the transform bos leaves unquantized."""
    marks = [mark for _, mark, _ in _marks(transform["name"] for transform in sensitivity["transforms"])]
    return {name for name, layer in layers.items() if "first_token" in marks and layer.get("first_token")}


def _marks(transforms):
    """Return [(transform, mark, description of marked layers)] of transforms that change only marked layers."""
    marks = {name: schema(f"transforms/{name}").get("x-marks", {}) for name in transforms}
    return [(name, mark, text) for name, descriptions in marks.items() for mark, text in descriptions.items()]


def taken_apart(layers: Layers, transforms: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Replace every layer that a transform splits by its parts; "part_of" is the name of the split layer.

    Args:
        layers: from the model manifest; layers that can be split have "segments" (how many) or "skips" (channels of
            each part).
        transforms: names; the schema of each transform says by which of the two keys it splits layers.
    """
    expanded, split_keys = {}, {schema(f"transforms/{name}").get("x-takes-apart") for name in transforms}
    for name, layer in layers.items():
        whole = {key: value for key, value in layer.items() if key not in ("segments", "skips")} | {"part_of": name}
        if "segments" in layer and "segments" in split_keys:
            rows = layer["out_features"] // layer["segments"]
            parts = [{**whole, "out_features": rows}] * layer["segments"]
        elif "skips" in layer and "skips" in split_keys:
            column = layer["in_features"] // sum(layer["skips"])  # weights per channel
            parts = [{**whole, "in_features": column * c, "skips": layer["skips"]} for c in layer["skips"]]
        else:
            expanded[name] = {key: value for key, value in layer.items() if key != "skips"}
            continue
        expanded |= {f"{name}.{index}": part for index, part in enumerate(parts)}
    return expanded


def matching(layers: Layers, patterns: Iterable[str], where: str) -> set[str]:
    """Return the names that match any pattern (`*` matches any text); a split layer's name also matches its parts.

    Raises:
        DataError: a pattern matches no layer.
    """
    matched = set()
    for pattern in patterns:
        names = {
            name
            for name, layer in layers.items()
            if fnmatchcase(name, pattern) or fnmatchcase(layer.get("part_of", name), pattern)
        }
        if not names:
            raise DataError(
                f"{where}: the pattern '{pattern}' matches no layer (a layer's name: {next(iter(layers))})."
            )
        matched |= names
    return matched
