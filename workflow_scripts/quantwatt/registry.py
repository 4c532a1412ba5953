"""Load plugins by name, and the schemas of their settings: `formats/nf4` is the format `nf4`.

A plugin is imported on demand, so that a job depends only on the plugins that it uses: editing one solver does not
rerun jobs of another.
"""

import functools
import importlib
import json
from types import ModuleType
from typing import Any

from quantwatt.artifacts.manifest import PROJECT

SCHEMAS = PROJECT / "resources" / "schemas"

PACKAGES = {  # {kind of plugin: its package, relative to quantwatt}
    "allocations": "allocate.allocations",
    "caches": "inference.caches",
    "exports": "inference.exports",
    "extractors": "score.extractors",
    "families": "models.families",
    "figures": "report.figures",
    "formats": "formats",
    "kernels": "inference.kernels",
    "loaders": "inference.loaders",
    "meters": "measuring.meters",
    "metrics": "score.metrics",
    "solvers": "quantize.solvers",
    "studies": "report.studies",
    "transforms": "quantize.transforms",
}


def module_name(kind: str, name: str) -> str:
    """The dotted name of a plugin's module; a dash in the plugin's name is an underscore in the file's name."""
    return f"quantwatt.{PACKAGES[kind]}.{name.replace('-', '_')}"


def names(kind: str) -> list[str]:
    """Names of the plugins of a kind that have a schema, sorted."""
    return sorted(path.name.removesuffix(".schema.json") for path in (SCHEMAS / kind).glob("*.schema.json"))


def load(kind: str, name: str) -> ModuleType:
    """The module of a plugin."""
    return importlib.import_module(module_name(kind, name))


@functools.cache
def schema(name: str) -> dict[str, Any]:
    """The JSON schema `resources/schemas/NAME.schema.json`."""
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())
