"""Suggest corrections for names that do not exist.

Schemas list the names that other projects use: "x-aliases" for a value, {pattern of the name: what to write}, and
"x-other-names" for a key, a list. Otherwise the nearest spelling is suggested, if it is near enough.
"""

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Mapping
from typing import Any

FEW = 8  # largest number of names that a sentence lists
NEAR = 0.7  # least ratio of difflib: a missing, extra or swapped letter, but not another acronym (fp8 for fp4)


def instead(word: object, *schemas: Mapping[str, Any]) -> str:
    """What to write instead of a value, by the schemas of valid values: the end of a sentence, or nothing.

    Args:
        word: the value as written, of any type.
        schemas: with the keys "x-aliases" and, for an enumeration, "enum".
    """
    word = "null" if word is None else str(word).lower()
    for schema in schemas:
        for value in schema.get("enum", ()):
            if isinstance(value, str) and value.lower() == word:
                return f"; write {value}"
        for pattern, hint in schema.get("x-aliases", {}).items():
            if fnmatch.fnmatchcase(word, pattern):
                return f"; {hint}"
    return ""


def other_name(key: str, properties: Mapping[str, Any]) -> str:
    """What to write instead of a key, by the schemas of valid keys, {name: schema}; as `instead`."""
    names = [name for name, schema in properties.items() if key.lower() in (name.lower(), *_others(schema))]
    written = "' and '".join(names)
    return f"; write '{written}'" if names else ""


def _others(schema):
    return schema.get("x-other-names", ()) if isinstance(schema, dict) else ()


def nearest(name: object, known: Collection[object]) -> str:
    """Suggest the nearest spelling; if none is near, list all names if they are few. As `spelling`."""
    few = ", ".join(sorted(map(str, known))) if 0 < len(known) <= FEW else ""
    return spelling(name, known) or (f"; there are {few}" if few else "")


def spelling(name: object, known: Iterable[object]) -> str:
    """Suggest the nearest spelling among known names: the end of a sentence, or nothing if none is near."""
    match = near(name, known)
    return f"; did you mean '{match}'" if match else ""


def near(name: object, known: Iterable[object]) -> str | None:
    """The nearest spelling among known names, or None."""
    return next(iter(difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=NEAR)), None)
