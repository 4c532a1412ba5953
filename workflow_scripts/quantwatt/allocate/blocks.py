"""Layers whose inputs the blocks of a format do not divide: as in llama.cpp, they get another format.

GGUF's types store whole blocks of 32 or 256 inputs. The schema of such a format says the size ("x-block") and the
format to fall back to ("x-fallback"); it is the one that llama.cpp takes, of at least as many bits.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from quantwatt.artifacts.errors import DataError
from quantwatt.registry import schema

Formats = Mapping[str, Mapping[str, Any]]  # {layer: {"weights": settings or None, ...}}


def with_fallbacks(weights: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield completed `weights` settings, those that they fall back to, those that these fall back to, and so on."""
    while weights:
        yield weights
        name = schema(f"formats/{weights['format']}").get("x-fallback")
        weights = {"format": name, "bits": schema(f"formats/{name}")["properties"]["bits"]["const"]} if name else None


def fitting(weights: Mapping[str, Any] | None, columns: int) -> Mapping[str, Any] | None:
    """Return completed `weights` settings that fit a layer of `columns` inputs: these, a fallback, or None."""
    fits = (w for w in with_fallbacks(weights) if columns % schema(f"formats/{w['format']}").get("x-block", 1) == 0)
    return next(fits, None)


def fit_all(formats: Formats, layers: Formats, where: str) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Give every layer a format that fits it.

    Args:
        formats: of the allocation; layers: {layer: {"in_features"}}; where: the method's entry, for messages.
    Returns:
        (formats, a sentence about the layers with a fallback, or None).
    Raises:
        DataError: nothing fits a layer.
    """
    fitted, replaced = {}, {}
    for name, layer in formats.items():
        fitted[name], weights = layer, layer["weights"]
        if not _in_blocks(weights):
            continue
        columns = layers[name]["in_features"]
        fitted[name] = {**layer, "weights": fitting(weights, columns)}
        if not fitted[name]["weights"]:
            raise DataError(
                f"{where}.weights: {_misfit(weights, name, columns)}; exclude it in the allocation, or override its "
                "weights there."
            )
        if fitted[name]["weights"] != weights:
            replaced.setdefault((weights["format"], fitted[name]["weights"]["format"]), []).append(name)
    notes = [
        f"{len(names)} of {len(formats)} layers have {fallback} weights instead of {wanted}, whose blocks of "
        f"{schema(f'formats/{wanted}')['x-block']} do not divide their inputs ({names[0]}: "
        f"{layers[names[0]]['in_features']})"
        for (wanted, fallback), names in replaced.items()
    ]
    return fitted, f"{where}: {'; '.join(notes)}." if notes else None


def check_candidate(weights: Mapping[str, Any] | None, layers: Formats, where: str) -> None:
    """Refuse a candidate of a mixed allocation that does not fit all layers: a fallback has other costs than it.

    Raises:
        DataError: its blocks do not divide the inputs of a layer.
    """
    for name, layer in layers.items() if _in_blocks(weights) else ():
        columns = layer["in_features"]
        if (found := fitting(weights, columns)) != weights:
            instead = f"a candidate {found['format']} would" if found else "exclude the layer"
            raise DataError(f"{where}.weights: {_misfit(weights, name, columns)}; {instead}.")


def _in_blocks(weights):
    return bool(weights) and "x-block" in schema(f"formats/{weights['format']}")


def _misfit(weights, name, columns):
    block = schema(f"formats/{weights['format']}")["x-block"]
    return f"{weights['format']}'s blocks of {block} do not divide the {columns} inputs of layer {name}"
