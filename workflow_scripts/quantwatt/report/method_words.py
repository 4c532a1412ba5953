"""A method's format, solver and transforms in as few words as tell them apart: what is no default."""

from collections.abc import Mapping
from typing import Any

from quantwatt import registry

SAYING = ("granularity", "element", "configuration", "alpha")  # settings whose value says enough


def format_words(entry: Mapping[str, Any]) -> str:
    """A format in a few words, what is not a default last: "int4 g128 symmetric", "nf4", "mxfp4".

    Args:
        entry: `weights` or `activations` of a completed method.
    """
    name, known = entry.get("format", "integer"), {"format", "bits", "group_size"}
    short = f"int{entry['bits']}" if name == "integer" else name
    size, granularity = entry.get("group_size"), entry.get("granularity")
    of_inputs = "dynamic" in entry
    properties = registry.schema(f"{'activations' if of_inputs else 'formats'}/{name}")["properties"]
    if size and properties["group_size"].get("default") != size:
        short, known = f"{short} g{size}", known | ({"granularity"} if granularity == "group" else set())
    return " ".join([short, *_unusual(entry, properties, known)])


def plugin_words(kind: str, entry: Mapping[str, Any]) -> str:
    """A solver or transform by its name, and what is not a default; kind: "solvers" or "transforms"."""
    properties = registry.schema(f"{kind}/{entry['name']}")["properties"]
    return " ".join([entry["name"], *_unusual(entry, properties, {"name"})])


def _unusual(entry, properties, known):
    """Words on the settings that are not their schema's defaults, or have none."""
    for key, value in entry.items():
        own = properties.get(key, {})
        if key in known or value is None or ("default" in own and value == own["default"]):
            continue
        name = key.replace("_", " ")
        yield str(value) if key in SAYING else name if value is True else f"{name} {str(value).lower()}"
