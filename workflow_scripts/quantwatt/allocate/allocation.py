"""Which layer gets which format."""

from fnmatch import fnmatchcase

from quantwatt import registry
from quantwatt.artifacts.errors import DataError
from quantwatt.config import methods
from quantwatt.registry import schema


def allocate(layers, method, method_name, **found):
    """Formats of every layer that a method quantizes.

    Args:
        layers: {name: {"in_features", "out_features"}} of the model manifest, in execution order.
        method: a completed method.
        found: what a mixed allocation's programs have found (quantwatt/allocate/allocations/mixed.py).
    Returns:
        {name: {"weights": settings, "activations": settings or None}}; empty for the unquantized method. A layer NAME
        that a transform takes apart is named by its parts: NAME.0, NAME.1, ...; those of a convolution have
        "skips", the channels of each part. Layers whose first token is computed apart have "first_token".
    Raises:
        DataError: the format does not fit a layer, a pattern matches none, or a transform finds no layer.
    """
    if not methods.is_quantized(method):
        return {}
    if methods.is_library(method) or methods.is_external(method):  # they know linear layers alone
        layers = {name: layer for name, layer in layers.items() if "kernel_size" not in layer}
    transforms = [transform["name"] for transform in method["transforms"]]
    layers = taken_apart(layers, transforms)
    kept = ["part_of", "skips"]
    for transform, mark, told in _marks(transforms):
        if not any(mark in layer for layer in layers.values()):
            raise DataError(f"methods.{method_name}.transforms: '{transform}' has no layer that {told} in this model.")
        kept.append(mark)
    module = registry.load("allocations", method["allocation"]["name"])
    formats = module.allocate(layers, method, method_name, **found)
    return {name: {**own, **{k: layers[name][k] for k in kept if k in layers[name]}} for name, own in formats.items()}


def tried(layers, sensitivity, name):
    """{layer: description} of those that a sensitivity tries, in the model's order.

    Args:
        layers: of the model manifest; sensitivity: a completed entry; name: the entry's, for messages.
    """
    layers = taken_apart(layers, [transform["name"] for transform in sensitivity["transforms"]])
    excluded = matching(layers, sensitivity["exclude"], f"sensitivities.{name}.exclude")
    return {layer: described for layer, described in layers.items() if layer not in excluded}


def first_tokens(layers, sensitivity):
    """Names of the layers tried that leave their first token unquantized, by the transform bos."""
    marks = [mark for _, mark, _ in _marks(transform["name"] for transform in sensitivity["transforms"])]
    return {name for name, layer in layers.items() if "first_token" in marks and layer.get("first_token")}


def _marks(transforms):
    """[(transform, mark, what it tells)] of those that change only layers which a family has marked."""
    marks = {name: schema(f"transforms/{name}").get("x-marks", {}) for name in transforms}
    return [(name, mark, told) for name, own in marks.items() for mark, told in own.items()]


def taken_apart(layers, transforms):
    """Layers with each that a transform takes apart replaced by its parts, which remember what they are a "part_of".

    Args:
        layers: of the model manifest: of several "segments", or of "skips" (channels of each part).
        transforms: names; their schemas say which of the two each takes apart.
    """
    expanded, by = {}, {schema(f"transforms/{name}").get("x-takes-apart") for name in transforms}
    for name, layer in layers.items():
        whole = {key: value for key, value in layer.items() if key not in ("segments", "skips")} | {"part_of": name}
        if "segments" in layer and "segments" in by:
            rows = layer["out_features"] // layer["segments"]
            parts = [{**whole, "out_features": rows}] * layer["segments"]
        elif "skips" in layer and "skips" in by:
            column = layer["in_features"] // sum(layer["skips"])  # values of one channel
            parts = [{**whole, "in_features": column * c, "skips": layer["skips"]} for c in layer["skips"]]
        else:
            expanded[name] = {key: value for key, value in layer.items() if key != "skips"}
            continue
        expanded |= {f"{name}.{index}": part for index, part in enumerate(parts)}
    return expanded


def matching(layers, patterns, where):
    """Names that match any of the patterns (`*` stands for any text); a whole layer's name also means its chunks.

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
