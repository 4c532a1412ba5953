"""What somebody may have meant who wrote a name that does not exist.

Schemas say it where other projects have another word: "x-aliases" of a value, {pattern of the word: what to write},
and "x-other-names" of a key, a list. Else the nearest spelling is named, where it is near.
"""

import difflib
import fnmatch

FEW = 8  # names that a sentence can hold
NEAR = 0.7  # of difflib's ratio: a letter too few, too many or exchanged, not one acronym for another (fp8 and fp4)


def instead(word, *schemas):
    """What to write instead of a value, by the schemas of those that exist; the end of a sentence, or nothing.

    Args:
        word: as it was written, of any type.
        schemas: with "x-aliases" and, of one value of several, "enum".
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


def other_name(key, properties):
    """Likewise for a key, by the schemas of those that exist: {name: schema}."""
    names = [name for name, schema in properties.items() if key.lower() in (name.lower(), *_others(schema))]
    written = "' and '".join(names)
    return f"; write '{written}'" if names else ""


def _others(schema):
    return schema.get("x-other-names", ()) if isinstance(schema, dict) else ()


def nearest(name, known):
    """The nearest spelling among some names, or all of them where they are few and none is near; as `spelling`."""
    few = ", ".join(sorted(map(str, known))) if 0 < len(known) <= FEW else ""
    return spelling(name, known) or (f"; there are {few}" if few else "")


def spelling(name, known):
    """Ask for the nearest spelling among some names; the end of a sentence, or nothing where none is near."""
    match = near(name, known)
    return f"; did you mean '{match}'" if match else ""


def near(name, known):
    """The nearest spelling among some names, or None."""
    return next(iter(difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=NEAR)), None)
