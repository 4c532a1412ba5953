"""Protocols of papers and libraries: an experiment names one, and gets its samplings, metrics and reference.

A file of resources/protocols/ has

    description:    one sentence
    source:         where the protocol and its figures are published
    samplings, metrics, reference:      as of an experiment; what depends on the model, such as steps, may be missing
    published:      list of {model, method, sampling, metric, value}: the published figures
    differences:    how this project's images differ from the published ones, one sentence
"""

from collections.abc import Mapping
from typing import Any

from quantwatt.config.schemas import ConfigurationError
from quantwatt.config.suggestions import nearest
from quantwatt.config.yaml_files import read_yaml
from quantwatt.jobs.fingerprints import ROOT

FOLDER = "resources/protocols"


def names() -> list[str]:
    """The protocols that there are."""
    return sorted(path.stem for path in (ROOT / FOLDER).glob("*.yaml"))


def read(name: str) -> dict[str, Any]:
    """What a protocol's file says."""
    file = f"{FOLDER}/{name}.yaml"
    return read_yaml(ROOT / file, file)


def published(name: str | None) -> dict[str, Any]:
    """A protocol's "source", "differences" and "published" figures; {} without a protocol."""
    return {key: read(name)[key] for key in ("source", "differences", "published")} if name else {}


def with_protocol(raw: Any, file: str) -> Any:
    """An experiment with the entries of the protocol that it names.

    A sampling or metric that both name has the protocol's keys, and the experiment's own win; `false` leaves it out.
    The experiment's reference, if it names one, is the only one.

    Args:
        raw: the parsed experiment; returned as it is without a protocol, or where its schema refuses it.
        file: its name in messages.
    Raises:
        ConfigurationError: there is no such protocol.
    """
    name = raw.get("protocol") if isinstance(raw, Mapping) else None
    if not isinstance(name, str):
        return raw
    if name not in names():
        raise ConfigurationError(f"{file}: protocol: there is no '{name}' in {FOLDER}{nearest(name, names())}.")
    preset, merged = read(name), dict(raw)
    for key in ("samplings", "metrics"):
        own = raw.get(key, {})
        if isinstance(own, Mapping):
            merged[key] = _merged(preset[key], own)
    if "reference" in preset:
        merged.setdefault("reference", preset["reference"])
    return merged


def _merged(preset, own):
    together = {name: _entry(preset.get(name), own.get(name)) for name in {**preset, **own}}
    return {name: entry for name, entry in together.items() if not (own.get(name) is False and name in preset)}


def _entry(preset, own):
    if own is None:
        return preset
    return {**preset, **own} if isinstance(preset, Mapping) and isinstance(own, Mapping) else own
