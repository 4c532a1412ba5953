"""Components beside the denoiser, in the manifests of models and of checkpoints.

A model's manifest describes under "components" what can be quantized of each: {name: {"layers", "blocks",
"parameters", "bytes" in the model's dtype}}. A checkpoint's has there what the method quantized: {name: {"files",
"layers", "size_bytes", "weight_bits", "activation_bits", "quantize"}}; the files are in a folder of that name. Under
"component_bytes" it has the unquantized size of every network of the pipeline, and under "denoiser" which one that is.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from quantwatt.artifacts.errors import DataError

KEPT = ("files", "layers", "size_bytes", "weight_bits", "activation_bits", "quantize")  # of a component's own manifest


def described(model: Mapping[str, Any], component: str | None) -> Mapping[str, Any]:
    """Return what a model's manifest says of a component, None for its denoiser, with the key "layers".

    Raises:
        DataError: the model has no such component.
    """
    if component is None:
        return model
    known = model.get("components") or {}
    if component not in known:
        has = ", ".join(known) or "none"
        raise DataError(f"{model['model']}: has no component '{component}' with layers to quantize (there are: {has}).")
    return known[component]


def quantized_layers(checkpoint: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the quantized layers of a checkpoint's denoiser by name, and those of its components as COMPONENT/NAME."""
    layers = dict(checkpoint.get("layers") or {})
    for name, part in (checkpoint.get("components") or {}).items():
        layers |= {f"{name}/{layer}": entry for layer, entry in part["layers"].items()}
    return layers


def size_bytes(checkpoint: Mapping[str, Any], names: Iterable[str]) -> int | None:
    """Return the bytes of a checkpoint's denoiser and of named components, quantized or not; None without a model."""
    size = checkpoint.get("size_bytes")
    made, whole = checkpoint.get("components") or {}, checkpoint.get("component_bytes") or {}
    sizes = (made[name]["size_bytes"] if name in made else whole.get(name, 0) for name in names)
    return None if size is None else size + sum(sizes)
