"""Which layer gets which format."""

from fnmatch import fnmatchcase

from quantwatt import registry
from quantwatt.manifest import DataError


def allocate(layers, method, method_name, **found):
    """Formats of every layer that a method quantizes.

    Args:
        layers: {name: {"in_features", "out_features"}} of the model manifest, in execution order.
        method: a completed method.
        found: what a mixed allocation's programs have found (quantwatt/allocations/mixed.py).
    Returns:
        {name: {"weights": settings, "activations": settings}}, either of which is None where it stays in 16 bit; empty
        for the unquantized method. With the transform `segments`, a layer NAME of several chunks is named by them:
        NAME.0, NAME.1, ...
    Raises:
        DataError: the format does not fit a layer, or a pattern matches none.
    """
    if method["weights"] is None and method["allocation"]["name"] != "mixed":
        return {}
    if any(transform["name"] == "segments" for transform in method["transforms"]):
        layers = segmented(layers)
    module = registry.load("allocations", method["allocation"]["name"])
    return module.allocate(layers, method, method_name, **found)


def segmented(layers):
    """Layers with each of several "segments" replaced by its chunks, which remember what they are a "segment_of"."""
    expanded = {}
    for name, layer in layers.items():
        count = layer.get("segments", 1)
        if count == 1:
            expanded[name] = layer
            continue
        chunk = {"in_features": layer["in_features"], "out_features": layer["out_features"] // count}
        expanded |= {f"{name}.{index}": {**chunk, "segment_of": name} for index in range(count)}
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
            if fnmatchcase(name, pattern) or fnmatchcase(layer.get("segment_of", name), pattern)
        }
        if not names:
            raise DataError(
                f"{where}: the pattern '{pattern}' matches no layer (a layer's name: {next(iter(layers))})."
            )
        matched |= names
    return matched
