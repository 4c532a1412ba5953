"""Check a configuration's values by their JSON schemas, fill in the defaults named there, and say what is wrong.

Each solver, transform, format, allocation, family and metric has its own schema: a new default of one never changes
the entries of another.
"""

import json
import math
import os
import unicodedata

import jsonschema

from quantwatt import registry
from quantwatt.artifacts.manifest import without_credentials
from quantwatt.config.suggestions import instead, nearest, other_name, spelling
from quantwatt.registry import schema

DEEPEST, MOST_PARTS = 20, 100_000  # nested entries of a file, and all of them
LONGEST_KEY, LONGEST_SHOWN = 100, 80  # characters; names are folders of the results
BREAKS = str.maketrans("", "", "\t\n")  # that a text may have
YES_OR_NO = {"yes": True, "on": True, "no": False, "off": False}  # where a boolean is expected, as YAML 1.1 has them
IN_YAML = {  # JSON's words for kinds of values
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

    def __init__(self, sentence):
        line = "".join(character if character.isprintable() else " " for character in sentence)
        super().__init__(without_credentials(line))


def lookup(mapping, name, what, file):
    """`mapping[name]`, or a ConfigurationError with the nearest spelling."""
    if name not in mapping:
        raise ConfigurationError(f"{file}: there is no {what} '{name}'{nearest(name, mapping)}.")
    return mapping[name]


def plugin(kind, name, file, where):
    """`name` if `resources/schemas/KIND/NAME.schema.json` exists."""
    known = registry.names(kind)
    if name not in known:
        schemas = [schema(f"{kind}/{known_name}") for known_name in known]
        hint = instead(name, {"enum": known}, *schemas) or spelling(name, known)
        raise ConfigurationError(f"{file}: {where}: {_shown(name)} is not known (known: {', '.join(known)}){hint}.")
    return name


def complete_plugin(entry, kind, key, file, where):
    """Complete an entry with the schema that its `key` names."""
    if not isinstance(entry, dict) or key not in entry:
        raise ConfigurationError(f"{file}: {where}.{key}: missing.")
    name = plugin(kind, entry[key], file, f"{where}.{key}")
    return complete(entry, schema(f"{kind}/{name}"), file, where)


def complete(value, schema, file, where):
    """Check `value` and return a copy with the schema's defaults filled in.

    A `~` at the start of what the schema calls a path becomes the home folder here, so that every job is told the same.
    """
    _check_parts(value, file, where)
    value = _as_meant(value, schema)
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(value), key=lambda e: (len(e.absolute_path), str(e.absolute_path)))
    if errors:
        raise ConfigurationError(_sentence(errors[0], file, where))
    return _with_defaults(json.loads(json.dumps(value)), schema)


def _check_parts(value, file, where):
    """Refuse what YAML can say and JSON, a path or a seed cannot hold, and what its aliases nest without end."""
    pending, count = [(where, value)], 0
    while pending:
        (path, part), count = pending.pop(), count + 1
        entry = f"{file}: {path}" if path else file
        if count > MOST_PARTS or path.count(".") > DEEPEST:
            raise ConfigurationError(f"{file}: its entries are nested too deeply, or too many.")
        if isinstance(part, dict):
            for key in part:
                if not isinstance(key, str) or not key.isprintable() or len(key) > LONGEST_KEY:
                    raise ConfigurationError(f"{entry}: the key {_shown(key)} is not a word; quote or rename it.")
        elif isinstance(part, str):
            if any(unicodedata.category(character) in ("Cc", "Cs") for character in part.translate(BREAKS)):
                raise ConfigurationError(f"{entry}: {_shown(part)} holds a character that is no text.")
        elif isinstance(part, float) and not math.isfinite(part):
            raise ConfigurationError(f"{entry}: {part} is not a number.")
        elif isinstance(part, int) and abs(part) >= 2**63:
            raise ConfigurationError(f"{entry}: the number has more than 64 bits.")
        elif not isinstance(part, list | int | float | None):
            raise ConfigurationError(f"{entry}: {_shown(part)} is neither text nor number; put it in quotes.")
        pairs = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        pending += [(f"{path}.{key}" if path else str(key), below) for key, below in pairs]


def _as_meant(value, schema):
    """A copy with home folders instead of `~` in paths, and true or false instead of yes or no."""
    if isinstance(value, str):
        if schema.get("x-path", False):
            prefix = next((own for own in schema.get("x-prefixes", ()) if value.startswith(own)), "")
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
    """What is wrong with a value, without JSON's words."""
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
    """How to write a value of another kind than those expected; the end of a sentence, or nothing."""
    numbers = {"integer", "number"}.intersection(kinds)
    if numbers and isinstance(value, str) and value.strip("+-").replace(".", "", 1).isdecimal():
        return "; leave out the quotation marks"
    if "string" in kinds and isinstance(value, bool | int | float):
        return "; put it in quotation marks"
    if "object" in kinds and isinstance(value, list) and value and isinstance(value[0], str) and value[0].isprintable():
        return f"; write '{value[0][:LONGEST_KEY]}:' in a line without a dash"
    return ""


def _shown(value):
    """A value as a message shows it, as YAML has it and cut where it is long."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
