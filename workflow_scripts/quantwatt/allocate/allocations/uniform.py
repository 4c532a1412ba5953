"""Give every layer the same format, except excluded layers (16 bit) and layers with an override."""

from collections.abc import Mapping
from typing import Any

from quantwatt.allocate.allocation import Layers, matching


def allocate(layers: Layers, method: Mapping[str, Any], method_name: str) -> dict[str, dict[str, Any]]:
    """As `quantwatt.allocate.allocation.allocate`; if several overrides match a layer, the last wins."""
    allocation, where = method["allocation"], f"methods.{method_name}.allocation"
    formats = {"weights": method["weights"], "activations": method["activations"]}
    layer_formats = dict.fromkeys(layers, formats)
    for pattern, changed in allocation["overrides"].items():
        for name in matching(layers, [pattern], f"{where}.overrides"):
            layer_formats[name] = {**layer_formats[name], **changed}
    excluded = matching(layers, allocation["exclude"], f"{where}.exclude")
    return {name: layer_formats[name] for name in layers if name not in excluded}
