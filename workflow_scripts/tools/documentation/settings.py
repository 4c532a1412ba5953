"""Pages of settings: every key of every schema, with what may stand there, its default and its meaning."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from quantwatt.registry import SCHEMAS, names, schema
from tools.documentation import code, page, plain, table

HEADS = ("key", "what may stand there", "default", "meaning")
TYPES = {
    "object": "mapping",
    "array": "list",
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "`true`, `false`",
    "null": "`null`",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
GROUPS = {  # {file: (title, introduction, schemas alone, kinds of plugins)}
    "config": ("config.yaml", "What runs, and how this machine measures. Each key may also stand behind `--config`.",
               ("config",), ()),
    "experiment": ("An experiment", "A file of `resources/experiments/`. The keys of an entry of `models` are in "
                   "[models](models.md), those of a method in [methods](methods.md), of a metric in "
                   "[metrics](metrics.md).",
                   ("experiment", "sensitivity"), ("samplings", "calibrations")),
    "methods": ("Methods", "An entry of an experiment's `methods`: a solver, a format of weights, one of inputs, "
                "transforms, an allocation, a cache.",
                ("method",), ("solvers", "formats", "activations", "transforms", "allocations", "caches")),
    "models": ("Models", "An entry of an experiment's `models`, by its `family`.", (), ("families",)),
    "metrics": ("Metrics", "Entries of an experiment's `metrics` and, for the weights of their networks, `extractors`.",
                (), ("metrics", "extractors")),
    "policies": ("Policies and bundles", "The policy of `gate.py`, and what a bundle holds.", ("gate", "bundle"), ()),
}  # fmt: skip
REST = "methods"  # the page of schemas that no group names
KINDS = {
    "samplings": "Samplings",
    "calibrations": "Calibration",
    "solvers": "Solvers: `solver`",
    "formats": "Formats of weights: `weights`",
    "activations": "Formats of inputs: `activations`",
    "transforms": "Transforms: `transforms`",
    "allocations": "Allocations: `allocation`",
    "caches": "Caches: `cache`",
    "families": "Families",
    "metrics": "Metrics",
    "extractors": "Networks: `extractors`",
}


def described(part: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any], bool]]:
    """(key with its parents, its schema, whether it must be given) of every key below a schema, in order.

    NAME stands for a key that the user chooses, [] for an entry of a list.
    """
    for key, value in part.get("properties", {}).items():
        yield f"{prefix}{key}", value, key in part.get("required", ())
        yield from described(value, f"{prefix}{key}.")
    for below, name in ((part.get("additionalProperties"), "NAME."), (part.get("items"), "[].")):
        if isinstance(below, dict):
            start = prefix.removesuffix(".") if name == "[]." else prefix
            yield from described(below, f"{start}{name}")
    for choice in (*part.get("anyOf", ()), *part.get("oneOf", ())):
        yield from described(choice, prefix)


def keys(name: str) -> list[tuple[str, dict[str, Any], bool]]:
    """`described` of the schema with this name, without repetitions: of a key that stands in two choices, the first."""
    first: dict[str, tuple[str, dict[str, Any], bool]] = {}
    for key, value, required in described(schema(name)):
        first.setdefault(key, (key, value, required))
    return list(first.values())


def values(part: Mapping[str, Any]) -> str:
    """What may stand at a key, in words."""
    if "const" in part:
        return code(_yaml(part["const"]))
    if "enum" in part:
        return ", ".join(code(_yaml(value)) for value in part["enum"])
    if "anyOf" in part:
        return " or ".join(values(choice) for choice in part["anyOf"])
    kinds = part.get("type", [])
    words = ", ".join(TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))
    bounds = " and ".join(f"{sign} {part[bound]}" for bound, sign in BOUNDS.items() if bound in part)
    return plain(f"{words} {bounds}".strip())


def default(part: Mapping[str, Any], required: bool) -> str:
    """The default of a key, or that it has to be given."""
    return code(_yaml(part["default"])) if "default" in part else "*must be given*" if required else ""


def _yaml(value):
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def section(name: str) -> str:
    """The table of one schema."""
    rows = [
        [code(key), values(value), default(value, required), plain(value.get("description", ""))]
        for key, value, required in keys(name)
    ]
    rule = schema(name).get("x-rule")
    text = table(HEADS, rows) if rows else "It has no settings."
    return f"{text}\n\n{plain(rule).capitalize()}." if rule else text


def pages() -> dict[str, str]:
    """{file: text} of all schemas; those that no group names are of methods."""
    found = {}
    told = {name for _, _, alone, kinds in GROUPS.values() for name in (*alone, *kinds)}
    rest = sorted({name.partition("/")[0] for name in every_schema()} - told)
    for file, (title, introduction, alone, kinds) in GROUPS.items():
        if file == REST:
            alone += tuple(name for name in rest if not (SCHEMAS / name).is_dir())
            kinds += tuple(name for name in rest if (SCHEMAS / name).is_dir())
        parts = [introduction]
        for name in alone:
            parts += [f"## {plain(schema(name)['title'])}", section(name)]
        for kind in kinds:
            parts.append(f"## {KINDS.get(kind, kind.capitalize())}")
            for name in names(kind):
                parts += [f"### {name}", f"{plain(schema(f'{kind}/{name}')['title'])}.", section(f"{kind}/{name}")]
        found[f"{file}.md"] = page(title, *parts)
    return found


def every_schema() -> list[str]:
    """Names of all schemas that there are."""
    return sorted(
        str(path.relative_to(SCHEMAS)).removesuffix(".schema.json") for path in SCHEMAS.rglob("*.schema.json")
    )
