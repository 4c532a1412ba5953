"""Read YAML with YAML 1.2's scalars, and explain in plain words what is wrong with a file.

PyYAML reads YAML 1.1, in which `no` and `on` are booleans, `1e-3` is a text, `010` is eight and `1:30` is ninety. This
loader resolves plain scalars as YAML 1.2: only true and false are booleans, and numbers are decimal. Digits may be
grouped, as in 50_000.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from quantwatt.config.schemas import ConfigurationError

LONGEST_LINE = 60  # largest number of characters of a line that a message shows
_DIGITS = "[0-9]+(?:_[0-9]+)*"
_PLAIN_WORDS = {  # {tag: (pattern, possible first characters)}
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (rf"[-+]?{_DIGITS}|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    "float": (
        rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
        r"|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": ("<<", ["<"]),
}
_SENTENCES = (  # (part of PyYAML's message, our sentence); {line}: the line where the faulty construct begins
    ("character '\\t'", "{shown} is indented by a tab; YAML wants spaces"),
    ("cannot start any token", "in {shown} a text begins with a sign that means something in YAML; quote it"),
    ("expected alphabetic or numeric", "in {shown} a text begins with * or &, which mean something in YAML; quote it"),
    ("found undefined alias", "in {shown} a text begins with *, which means an anchor in YAML; quote it"),
    ("could not determine a constructor", "in {shown} a text begins with !, which means a tag in YAML; quote it"),
    (
        "mapping values are not allowed",
        "{shown} has a colon too many, or is indented deeper than the line above",
    ),
    ("could not find expected ':'", "{shown} is neither 'key: value' nor a part of the text above"),
    ("found unexpected end of stream", "a quotation mark is not closed; it opens in line {line}"),
    ("expected ',' or ']'", "a list is not closed by ']', or a comma is missing; it opens in line {line}"),
    ("expected ',' or '}'", "a mapping is not closed by '}}', or a comma is missing; it opens in line {line}"),
    (
        "expected <block end>",
        "{shown} is indented neither as the line above nor as its block, from line {line} on{begun}",
    ),
)
_AFTER_QUOTE = "in {shown} something stands after a text in quotation marks, or after a bracket; quote it all"


class _Loader(yaml.SafeLoader):
    """Refuses a duplicate key; PyYAML would silently keep the last value."""

    yaml_implicit_resolvers: ClassVar = {}  # drops YAML 1.1's resolvers

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key is not a string", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"the key '{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node):
        text = node.value.replace("_", "")
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


for _tag, (_pattern, _first) in _PLAIN_WORDS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(path: str | Path, file: str) -> dict[str, Any]:
    """Parse a YAML file; duplicate keys are refused.

    Args:
        path: of the file.
        file: its name in messages.
    Returns:
        a mapping.
    Raises:
        ConfigurationError: the file is not readable, not YAML, not a mapping, or has a duplicate key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: not a text in UTF-8 (byte {error.start}).") from error
    value = parse(text, file)
    if not isinstance(value, dict):
        raise ConfigurationError(f"{file}: expected a mapping of keys to values.")
    return value


def parse(text: str, file: str) -> Any:
    """Parse a text in YAML; `file` is its name in messages.

    Raises:
        ConfigurationError: the text is not YAML, or has a duplicate key.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError(f"{file}: {_sentence(error, text.splitlines())}.") from error
    except ReaderError as error:
        raise ConfigurationError(
            f"{file}: the character {chr(error.character)!a} at place {error.position} cannot stand in YAML."
        ) from error
    except RecursionError as error:
        raise ConfigurationError(f"{file}: its entries are nested too deeply.") from error
    except (ValueError, LookupError, AttributeError) as error:  # PyYAML raises these if a value does not fit its tag
        raise ConfigurationError(f"{file}: a value does not match its YAML tag (such as date or number).") from error


def _sentence(error, lines):
    """PyYAML's error in plain words, with its line and, where it helps, the line that it conflicts with."""
    wrong, begun = error.problem_mark, error.context_mark or error.problem_mark
    if wrong is None:
        return error.problem
    sentence = next((ours for words, ours in _SENTENCES if words in error.problem), "{problem}")
    if "block end" in error.problem and wrong.line == begun.line:
        sentence = _AFTER_QUOTE
    shown = _line(wrong, lines)
    words = sentence.format(
        shown=shown or "what stands here",
        problem=error.problem,
        line=begun.line + 1,
        begun=f" ({_line(begun, lines)})" if begun.line < len(lines) else "",
    )
    return f"line {wrong.line + 1}: {words}"


def _line(mark, lines):
    """The line of a mark in quotation marks, truncated; nothing past the end of the file."""
    text = lines[mark.line].rstrip() if mark.line < len(lines) else ""
    return f"'{text[:LONGEST_LINE]}{'...' if len(text) > LONGEST_LINE else ''}'" if text else ""
