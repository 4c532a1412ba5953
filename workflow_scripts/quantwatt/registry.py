"""Plugins by name, and the schemas of their settings: `formats/nf4` is the format `nf4`.

A plugin is imported when it is asked for, so that a job depends only on the plugins it uses, and editing one solver
invalidates nothing of another.
"""

import functools
import importlib
import json

from quantwatt.artifacts.manifest import PROJECT

SCHEMAS = PROJECT / "resources" / "schemas"

PACKAGES = {  # of each kind of plugin, relative to quantwatt
    "allocations": "allocate.allocations",
    "exports": "inference.exports",
    "extractors": "score.extractors",
    "families": "models.families",
    "figures": "report.figures",
    "formats": "formats",
    "kernels": "inference.kernels",
    "meters": "measuring.meters",
    "metrics": "score.metrics",
    "solvers": "quantize.solvers",
    "studies": "report.studies",
    "transforms": "quantize.transforms",
}


def module_name(kind, name):
    """The dotted name of a plugin's module; a dash in its name stands for an underscore in the file's."""
    return f"quantwatt.{PACKAGES[kind]}.{name.replace('-', '_')}"


def names(kind):
    """Names of the plugins of a kind that have a schema, sorted."""
    return sorted(path.name.removesuffix(".schema.json") for path in (SCHEMAS / kind).glob("*.schema.json"))


def load(kind, name):
    """The module of a plugin."""
    return importlib.import_module(module_name(kind, name))


@functools.cache
def schema(name):
    """The JSON schema `resources/schemas/NAME.schema.json`."""
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())
