"""Average bits of a checkpoint's weights and activations."""

from collections.abc import Mapping
from typing import Any

from quantwatt.artifacts.dtypes import BYTES


def average_bits(
    layers: Mapping[str, Mapping[str, Any]], reports: Mapping[str, Mapping[str, Any]], dtype: str
) -> dict[str, float]:
    """Bits per weight (scales and zero points included) and per activation, over the weights of all layers.

    Layers without a report are not quantized and count with the bits of the model's dtype.
    """
    bits = 8 * BYTES[dtype]
    total = sum(layer["in_features"] * layer["out_features"] for layer in layers.values())
    weight_bits = activation_bits = float(bits)
    for report in reports.values():
        share = report["in_features"] * report["out_features"] / total
        weight_bits += share * (report["weight_bits"] - bits)
        activation_bits += share * (report["activation_bits"] - bits)
    return {"weight_bits": round(weight_bits, 4), "activation_bits": round(activation_bits, 4)}
