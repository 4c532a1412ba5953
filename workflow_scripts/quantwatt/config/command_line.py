"""Check Snakemake's command line before Snakemake reads it: Snakemake would answer these mistakes with a traceback.

The profiles in profiles/ call `check`, because Snakemake reads them before everything else.
"""

import re
import sys
from pathlib import Path

from quantwatt.config.experiment import EXPERIMENTS, values
from quantwatt.config.schemas import ConfigurationError
from quantwatt.config.yaml_files import read_yaml

CONFIG, CONFIGFILE = ("--config", "-C"), ("--configfile", "--configfiles")
KEY = re.compile(r"[a-zA-Z_][\w-]*\w")  # keys that Snakemake accepts


def check(words: list[str]) -> None:
    """End Snakemake with one sentence if its command line or its configuration cannot be read.

    Args:
        words: the arguments, without Snakemake's name.
    """
    try:
        _check(words)
    except ConfigurationError as error:
        sys.exit(str(error))


def _check(words):
    for option, taken in _taken(words):
        if option in CONFIG:
            for word in taken:
                _check_setting(option, word, taken)
            values(taken)
        else:
            for word in taken:
                _check_file(option, word)
    if Path("config.yaml").exists():
        read_yaml("config.yaml", "config.yaml")


def _taken(words):
    """(option, its words) for --config and --configfile: all words up to the next option."""
    words = words[: words.index("--")] if "--" in words else words
    for i, word in enumerate(words):
        option, equals, first = word.partition("=")
        if option in (*CONFIG, *CONFIGFILE):
            rest = words[i + 1 :]
            end = next((place for place, later in enumerate(rest) if later.startswith("-")), len(rest))
            yield option, [first] if equals else rest[:end]


def _check_setting(option, word, taken):
    key, equals, _ = word.partition("=")
    if equals and KEY.fullmatch(key):
        return
    if "=" in taken or not key or ":" in key:
        raise ConfigurationError(f"{option} {word}: write KEY=VALUE without spaces, as experiment=smoke.")
    if equals:
        raise ConfigurationError(f"{option} {word}: '{key}' is no name of a setting.")
    if (EXPERIMENTS / f"{word}.yaml").exists():
        raise ConfigurationError(f"{option} {word}: write {option} experiment={word}.")
    settings = " ".join(setting for setting in taken if "=" in setting)
    if "/" in word or settings:
        raise ConfigurationError(
            f"{option} takes every word up to the next option, and '{word}' is no KEY=VALUE; put targets first: "
            f"snakemake {word} {option} {settings or 'KEY=VALUE'}."
        )
    raise ConfigurationError(f"{option} {word}: a value is missing; write {word}=VALUE.")


def _check_file(option, word):
    path = Path(word)
    if not path.is_file():
        like_a_file = path.suffix in (".yaml", ".yml", ".json")
        hint = "" if like_a_file else f"; {option} takes every word up to the next option, so put targets first"
        raise ConfigurationError(f"{option} {word}: there is no such file{hint}.")
    if path.suffix != ".json":
        read_yaml(path, word)
