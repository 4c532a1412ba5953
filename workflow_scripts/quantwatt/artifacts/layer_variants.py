"""Layers of a checkpoint's manifest that compute in several formats, one in each range of a drawing's steps.

The entry of such a layer holds its shape and

variants    what other layers' entries hold, once for each format and its values; "shares" of a variant: {part: number
            of the variant whose tensor is the same}
ranges      the number of the variant that computes in each range; None: the unquantized layer, stored as "weight"

The manifest's "schedule" is [{"steps": number, or None for the rest, "weight_bits", "activation_bits"}] of the ranges,
and None where all steps are alike; then no layer has variants.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Entry = Mapping[str, Any]  # of a layer in a manifest


def variants(layer: Entry) -> list[dict[str, Any]]:
    """Return what a layer may compute in: one entry as of a layer without ranges for each variant."""
    if "variants" not in layer:
        return [dict(layer)]
    shape = {key: value for key, value in layer.items() if key not in ("variants", "ranges")}
    return [shape | variant for variant in layer["variants"]]


def flat(layers: Mapping[str, Entry]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (layer, entry) of every variant of every layer; one without ranges is its own only variant."""
    for name, layer in layers.items():
        for variant in variants(layer):
            yield name, variant


def computing(layer: Entry, index: int) -> dict[str, Any] | None:
    """Return the entry of the variant that computes in a range; None where the layer is unquantized."""
    number = layer["ranges"][index] if "ranges" in layer else 0
    return None if number is None else variants(layer)[number]


def ranges_of(layer: Entry, variant: int) -> list[int] | None:
    """Return the ranges in which a variant computes; None where all steps are alike."""
    return [i for i, used in enumerate(layer["ranges"]) if used == variant] if "ranges" in layer else None


def stored_as(part: str, variant: int) -> str:
    """Return the name of a variant's part behind its layer's; the first variant's are those of any layer."""
    return f"{part}@{variant}" if variant else part


def parts(layer: Entry) -> list[dict[str, str]]:
    """Return {part: its name behind the layer's} of every variant, also where variants share a tensor."""
    return [
        {part: stored_as(part, variant.get("shares", {}).get(part, number)) for part in variant["parts"]}
        for number, variant in enumerate(variants(layer))
    ]


def keeps_weight(layer: Entry) -> bool:
    """Whether a layer is unquantized in some range, so that its weight is stored, too."""
    return None in layer.get("ranges", ())
