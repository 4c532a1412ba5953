"""Check a configuration's values by their JSON schemas, fill in the defaults named there, and say what is wrong.

Each solver, transform, format, allocation, family and metric has its own schema: a new default of one never changes
the entries of another.
"""

import difflib
import json
import math
import unicodedata
from pathlib import Path

import jsonschema
import yaml

from quantwatt.manifest import without_credentials
from quantwatt.methods import SCHEMAS, schema

DEEPEST, MOST_PARTS = 20, 100_000  # nested entries of a file, and all of them
LONGEST_KEY, LONGEST_SHOWN = 100, 80  # characters; names are folders of the results
BREAKS = str.maketrans("", "", "\t\n")  # that a text may have


class ConfigurationError(Exception):
    """A wrong entry of the configuration; the message is one sentence naming file, entry and key."""

    def __init__(self, sentence):
        line = "".join(character if character.isprintable() else " " for character in sentence)
        super().__init__(without_credentials(line))


def read_yaml(path, file):
    """Parse a YAML file, refusing a key that stands twice (YAML itself would silently keep the last).

    Raises:
        ConfigurationError: not readable, not YAML, not a mapping, or a duplicate key.
    """
    try:
        value = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigurationError(f"{file}:{f' line {mark.line + 1}:' if mark else ''} {error.problem}.") from error
    except yaml.reader.ReaderError as error:
        raise ConfigurationError(
            f"{file}: the character {chr(error.character)!a} at place {error.position} cannot stand in YAML."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: not a text in UTF-8 (byte {error.start}).") from error
    except RecursionError as error:
        raise ConfigurationError(f"{file}: its entries are nested too deeply.") from error
    except (ValueError, LookupError, AttributeError) as error:  # PyYAML's, of a value that its tag does not fit
        raise ConfigurationError(f"{file}: a date, number or tag in it is none.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{file}: expected a mapping of keys to values.")
    return value


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a word", key.start_mark)
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
    _check_parts(value, file, where)
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
        hint = nearest(error.instance, error.validator_value)
        return f"{entry}: {_shown(error.instance)} is none of {allowed}{hint}."
    if error.validator == "type":
        expected = (
            error.validator_value if isinstance(error.validator_value, str) else " or ".join(error.validator_value)
        )
        return f"{entry}: expected {expected}, got {_shown(error.instance)}."
    hint = error.schema.get("description") if isinstance(error.schema, dict) else None
    message = error.message.replace(repr(error.instance), _shown(error.instance))
    return f"{entry}: {message}{f' ({hint})' if hint else ''}."


def _shown(value):
    """A value as a message shows it: cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def nearest(name, known):
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'" if match else ""
