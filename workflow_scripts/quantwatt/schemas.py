"""Check a configuration's values by their JSON schemas, fill in the defaults named there, and say what is wrong.

Each solver, transform, format, allocation, family and metric has its own schema: a new default of one never changes
the entries of another.
"""

import difflib
import json
import math
from pathlib import Path

import jsonschema
import yaml

from quantwatt.methods import SCHEMAS, schema


class ConfigurationError(Exception):
    """A wrong entry of the configuration; the message is one sentence naming file, entry and key."""


def read_yaml(path, file):
    """Parse a YAML file, refusing a key that stands twice (YAML itself would silently keep the last).

    Raises:
        ConfigurationError: not YAML, not a mapping, or a duplicate key.
    """
    try:
        value = yaml.load(Path(path).read_text(), Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise ConfigurationError(f"{file}:{line} {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{file}: expected a mapping of keys to values.")
    return value


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def lookup(mapping, name, what, file):
    """`mapping[name]`, or a ConfigurationError with the nearest spelling."""
    if name not in mapping:
        raise ConfigurationError(f"{file}: there is no {what} '{name}'{nearest(name, mapping)}.")
    return mapping[name]


def plugin(kind, name, file, where):
    """`name` if `resources/schemas/KIND/NAME.schema.json` exists."""
    known = sorted(p.name.removesuffix(".schema.json") for p in (SCHEMAS / kind).glob("*.schema.json"))
    if name not in known:
        raise ConfigurationError(
            f"{file}: {where}: '{name}' is not known (known: {', '.join(known)}){nearest(name, known)}."
        )
    return name


def complete_plugin(entry, kind, key, file, where):
    """Complete an entry with the schema that its `key` names."""
    if not isinstance(entry, dict) or key not in entry:
        raise ConfigurationError(f"{file}: {where}.{key}: missing.")
    name = plugin(kind, entry[key], file, f"{where}.{key}")
    return complete(entry, schema(f"{kind}/{name}"), file, where)


def complete(value, schema, file, where):
    """Check `value` and return a copy with the schema's defaults filled in."""
    for key, number in _numbers(value):
        if not math.isfinite(number):
            raise ConfigurationError(f"{file}: {'.'.join(filter(None, [where, key]))}: {number} is not a number.")
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(value), key=lambda e: (len(e.absolute_path), str(e.absolute_path)))
    if errors:
        raise ConfigurationError(_sentence(errors[0], file, where))
    return _with_defaults(json.loads(json.dumps(value)), schema)


def _numbers(value, path=""):
    """(path, number) of every number with a decimal point in nested mappings and lists."""
    if isinstance(value, float):
        yield path, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in pairs:
        yield from _numbers(part, f"{path}.{key}" if path else str(key))


def _with_defaults(value, schema):
    if isinstance(value, float) and value.is_integer():
        types = schema.get("type", [])
        if "integer" in types or int(value) in [v for v in schema.get("enum", ()) if type(v) is int]:
            return int(value)  # JSON knows one kind of number: 4.0 is a whole one
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
        return f"{entry}: unknown key '{unknown}'{nearest(unknown, known)}."
    if error.validator in ("oneOf", "anyOf", "not") and "x-rule" in error.schema:
        return f"{entry}: {error.schema['x-rule']}."
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{entry}: the key '{missing}' is missing."
    if error.validator == "enum":
        allowed = ", ".join(str(v) for v in error.validator_value)
        return f"{entry}: {error.instance!r} is none of {allowed}{nearest(error.instance, error.validator_value)}."
    if error.validator == "type":
        expected = (
            error.validator_value if isinstance(error.validator_value, str) else " or ".join(error.validator_value)
        )
        return f"{entry}: expected {expected}, got {error.instance!r}."
    hint = error.schema.get("description") if isinstance(error.schema, dict) else None
    return f"{entry}: {error.message}{f' ({hint})' if hint else ''}."


def nearest(name, known):
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'" if match else ""
