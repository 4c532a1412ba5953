"""The limits under which a method is recommended: keys of config.yaml."""

from collections.abc import Mapping
from typing import Any

from quantwatt.config import metric_entries

KEYS = ("max_energy_j", "max_latency_s", "max_memory_mb", "max_size_mb", "min_quality")


def of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The limits of a complete configuration."""
    return {key: config[key] for key in KEYS}


def wrong(limits: Mapping[str, Any]) -> str | None:
    """What is wrong with names of limits and metrics, or None; a schema checks the values in config.yaml."""
    for name in limits:
        if name not in KEYS:
            return f"{name}: no such limit; one of {', '.join(KEYS)}."
    metrics = metric_entries.shown()
    for name, wanted in (limits.get("min_quality") or {}).items():
        if name not in metrics:
            return f"min_quality: '{name}' is no metric; one of {', '.join(metrics)}."
        if isinstance(wanted, Mapping) and metrics[name].paired:
            return (
                f"min_quality.{name}: the unquantized model has no {metrics[name].title} of its own: write a value "
                "instead of a margin."
            )
    return None
