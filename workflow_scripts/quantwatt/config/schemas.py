"""Check a configuration's values against JSON schemas, fill in the schemas' defaults, and explain errors.

Each solver, transform, format, allocation, family and metric has its own schema: a new default in one schema never
changes entries of another.
"""

import json
import math
import os
import unicodedata
from collections.abc import Mapping
from typing import Any

import jsonschema

from quantwatt import registry
from quantwatt.artifacts.manifest import without_credentials
from quantwatt.config.suggestions import instead, nearest, other_name, spelling
from quantwatt.registry import schema

DEEPEST, MOST_PARTS = 20, 100_000  # deepest nesting of a file's entries, and their largest number
LONGEST_KEY, LONGEST_SHOWN = 100, 80  # characters; names become folders of the results
BREAKS = str.maketrans("", "", "\t\n")  # control characters that a text may contain
YES_OR_NO = {"yes": True, "on": True, "no": False, "off": False}  # YAML 1.1's booleans, where a boolean is expected
IN_YAML = {  # {JSON's name of a type: words for users}
    "object": "a mapping of keys to values",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


class ConfigurationError(Exception):
    """A wrong entry of the configuration; the message is one sentence naming file, entry and key."""

    def __init__(self, sentence: str) -> None:
        line = "".join(character if character.isprintable() else " " for character in sentence)
        super().__init__(without_credentials(line))


def lookup(mapping: Mapping[str, Any], name: str, what: str, file: str) -> Any:
    """`mapping[name]`, or a ConfigurationError with the nearest spelling."""
    if name not in mapping:
        raise ConfigurationError(f"{file}: there is no {what} '{name}'{nearest(name, mapping)}.")
    return mapping[name]


def plugin(kind: str, name: str, file: str, where: str) -> str:
    """Return `name` if `resources/schemas/KIND/NAME.schema.json` exists; else raise ConfigurationError."""
    known = registry.names(kind)
    if name not in known:
        schemas = [schema(f"{kind}/{known_name}") for known_name in known]
        hint = instead(name, {"enum": known}, *schemas) or spelling(name, known)
        raise ConfigurationError(f"{file}: {where}: {_shown(name)} is not known (known: {', '.join(known)}){hint}.")
    return name


def complete_plugin(entry: Any, kind: str, key: str, file: str, where: str) -> dict[str, Any]:
    """Complete an entry with the schema of the plugin that the entry's `key` names."""
    if not isinstance(entry, dict) or key not in entry:
        raise ConfigurationError(f"{file}: {where}.{key}: missing.")
    name = plugin(kind, entry[key], file, f"{where}.{key}")
    return complete(entry, schema(f"{kind}/{name}"), file, where)


def complete(value: Any, schema: Mapping[str, Any], file: str, where: str) -> Any:
    """Check `value` and return a copy with the schema's defaults filled in.

    A `~` at the start of a path ("x-path" in the schema) is replaced by the home folder, so that all jobs agree on it.
    """
    _check_parts(value, file, where)
    value = _as_meant(value, schema)
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(value), key=lambda e: (len(e.absolute_path), str(e.absolute_path)))
    if errors:
        raise ConfigurationError(_sentence(errors[0], file, where))
    return _with_defaults(json.loads(json.dumps(value)), schema)


def _check_parts(value, file, where):
    """Refuse YAML values that JSON, paths or seeds cannot represent, and endless nesting by aliases."""
    pending, count = [(where, value)], 0
    while pending:
        (path, part), count = pending.pop(), count + 1
        entry = f"{file}: {path}" if path else file
        if count > MOST_PARTS or path.count(".") > DEEPEST:
            raise ConfigurationError(f"{file}: its entries are nested too deeply, or too many.")
        if isinstance(part, dict):
            for key in part:
                if not isinstance(key, str) or not key.isprintable() or len(key) > LONGEST_KEY:
                    raise ConfigurationError(
                        f"{entry}: the key {_shown(key)} must be a short printable string; quote or rename it."
                    )
        elif isinstance(part, str):
            if any(unicodedata.category(character) in ("Cc", "Cs") for character in part.translate(BREAKS)):
                raise ConfigurationError(f"{entry}: {_shown(part)} contains a control character.")
        elif isinstance(part, float) and not math.isfinite(part):
            raise ConfigurationError(f"{entry}: {part} is not a number.")
        elif isinstance(part, int) and abs(part) >= 2**63:
            raise ConfigurationError(f"{entry}: the number has more than 64 bits.")
        elif not isinstance(part, list | int | float | None):
            raise ConfigurationError(f"{entry}: {_shown(part)} is neither text nor number; put it in quotes.")
        pairs = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        pending += [(f"{path}.{key}" if path else str(key), below) for key, below in pairs]


def _as_meant(value, schema):
    """A copy with `~` in paths expanded, and yes or no replaced by true or false."""
    if isinstance(value, str):
        if schema.get("x-path", False):
            prefix = next((start for start in schema.get("x-prefixes", ()) if value.startswith(start)), "")
            return prefix + os.path.expanduser(value.removeprefix(prefix))
        return YES_OR_NO.get(value.lower(), value) if schema.get("type") == "boolean" else value
    if isinstance(value, list):
        return [_as_meant(part, schema.get("items", {})) for part in value]
    if not isinstance(value, dict):
        return value
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    others = others if isinstance(others, dict) else {}
    return {key: _as_meant(part, known.get(key, others)) for key, part in value.items()}


def _with_defaults(value, schema):
    if isinstance(value, float) and value.is_integer():
        types = schema.get("type", [])
        if "integer" in types or int(value) in [v for v in schema.get("enum", ()) if type(v) is int]:
            return int(value)  # JSON does not distinguish 4.0 from 4
    if isinstance(value, list):
        return [_with_defaults(part, schema["items"]) for part in value] if "items" in schema else value
    if not isinstance(value, dict):
        return value
    for key, sub in schema.get("properties", {}).items():
        if key not in value and "default" in sub:
            value[key] = json.loads(json.dumps(sub["default"]))
        if key in value:
            value[key] = _with_defaults(value[key], sub)
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        for key in value.keys() - schema.get("properties", {}).keys():
            value[key] = _with_defaults(value[key], extra)
    return value


def _sentence(error, file, where):
    path = ".".join([where, *map(str, error.absolute_path)] if where else map(str, error.absolute_path))
    entry = f"{file}: {path}" if path else file
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = sorted(error.instance.keys() - known.keys())[0]
        return f"{entry}: unknown key '{unknown}'{other_name(unknown, known) or nearest(unknown, known)}."
    if error.validator in ("oneOf", "anyOf", "not") and "x-rule" in error.schema:
        return f"{entry}: {error.schema['x-rule']}."
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{entry}: the key '{missing}' is missing."
    if error.validator == "enum":
        allowed = ["null" if value is None else str(value) for value in error.validator_value]
        hint = instead(error.instance, error.schema) or spelling(error.instance, allowed)
        return f"{entry}: {_shown(error.instance)} is none of {', '.join(allowed)}{hint}."
    hint = error.schema.get("description") if isinstance(error.schema, dict) else None
    return f"{entry}: {_complaint(error)}{f' ({hint})' if hint else ''}."


def _complaint(error):
    """What is wrong with a value, in YAML's terms instead of JSON's."""
    if error.validator == "type":
        kinds = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
        expected = " or ".join(IN_YAML[kind] for kind in kinds)
        return f"expected {expected}, got {_shown(error.instance)}{_repair(error.instance, kinds)}"
    if error.validator == "pattern":
        return f"{_shown(error.instance)} does not fit"
    if error.validator in ("minItems", "minProperties"):
        return f"{_shown(error.instance)} is empty"
    return error.message.replace(repr(error.instance), _shown(error.instance))


def _repair(value, kinds):
    """How to correct a value of an unexpected type: the end of a sentence, or nothing."""
    numbers = {"integer", "number"}.intersection(kinds)
    if numbers and isinstance(value, str) and value.strip("+-").replace(".", "", 1).isdecimal():
        return "; leave out the quotation marks"
    if "string" in kinds and isinstance(value, bool | int | float):
        return "; put it in quotation marks"
    if "object" in kinds and isinstance(value, list) and value and isinstance(value[0], str) and value[0].isprintable():
        return f"; write '{value[0][:LONGEST_KEY]}:' in a line without a dash"
    return ""


def _shown(value):
    """A value as messages show it, in YAML's notation and truncated."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
