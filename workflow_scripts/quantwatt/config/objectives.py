"""Objectives by which mixed methods choose layers' formats: one metric for all layers, or one per group of layers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.sensitivity_table import METRICS
from quantwatt.config import methods


def objectives(entries: Iterable[Mapping[str, Any]], sensitivity: str) -> list[str | dict[str, str]]:
    """The distinct objectives of all methods that use a sensitivity; the order of methods does not matter.

    Args:
        entries: completed methods; sensitivity: its name.
    Returns:
        [a metric, or {group: metric}]; all metrics if no method uses the sensitivity.
    """
    used = [method["allocation"] for method in entries if methods.is_mixed(method)]
    programs = [program for entry in used if entry["sensitivity"] == sensitivity for program in entry["programs"]]
    distinct = {manifest.canonical_json(program["objective"]): program["objective"] for program in programs}
    return [distinct[key] for key in sorted(distinct)] or list(METRICS)


def metric_of(objective: str | dict[str, str], name: str, layer: Mapping[str, Any], where: str | Path) -> str:
    """The metric of an objective for a layer; raises as `group_of`."""
    return objective[group_of(name, layer, where)] if isinstance(objective, dict) else objective


def group_of(name: str, layer: Mapping[str, Any], where: str | Path) -> str:
    """A layer's group, "content" or "quality".

    Raises:
        DataError: the model's family has no groups.
    """
    if "group" not in layer:
        raise DataError(
            f"{where}: layer {name} is of no group, because this family does not say what its content layers are; give "
            "one objective and one list of candidates."
        )
    return layer["group"]
