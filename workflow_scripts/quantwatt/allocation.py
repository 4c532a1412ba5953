"""Which layer gets which format."""

import fnmatch

from quantwatt import registry
from quantwatt.manifest import DataError


def allocate(layers, method, method_name):
    """Formats of every layer that a method quantizes.

    Args:
        layers: {name: {"in_features", "out_features"}} of the model manifest, in execution order.
        method: a completed method.
    Returns:
        {name: {"weights": settings, "activations": settings or None}}; empty for the unquantized method.
    Raises:
        DataError: the format does not fit a layer, or a pattern matches none.
    """
    if method["weights"] is None:
        return {}
    module = registry.load("allocations", method["allocation"]["name"])
    return module.allocate(layers, method, method_name)


def matching(layers, patterns, where):
    """Names that match any of the patterns (`*` stands for any text).

    Raises:
        DataError: a pattern matches no layer.
    """
    matched = set()
    for pattern in patterns:
        names = fnmatch.filter(layers, pattern)
        if not names:
            raise DataError(
                f"{where}: the pattern '{pattern}' matches no layer (a layer's name: {next(iter(layers))})."
            )
        matched.update(names)
    return matched
