"""Complete and check the networks that an experiment's metrics need: its `extractors`, and where their weights are.

A schema of resources/schemas/extractors/ has, in addition to its settings,

    "x-reads": WORD         what is read with each image: "pairs" (the baseline's) or "prompts"; missing: nothing
    "x-where": SENTENCE     how to get the weights
    "x-download": {...}     the "weights" and "revision" that `weights: download` stands for; missing: their publisher
                            has a pickle alone, which no job reads
"""

from typing import Any

from quantwatt.config.schemas import ConfigurationError, complete, plugin
from quantwatt.jobs.fingerprints import ROOT
from quantwatt.registry import schema

DOWNLOAD = "download"


def complete_network(name: str, entry: Any, file: str) -> dict[str, Any]:
    """An entry with its defaults, and the repository that `download` stands for.

    Raises:
        ConfigurationError: there is no such network, a value is wrong, or the weights are not where it says.
    """
    known = schema(f"extractors/{plugin('extractors', name, file, 'extractors')}")
    completed = complete({} if entry is None else entry, known, file, f"extractors.{name}")
    where = f"{file}: extractors.{name}.weights: '{completed['weights']}'"
    if completed["weights"] == DOWNLOAD:
        if "x-download" not in known:
            raise ConfigurationError(f"{where}: they are published as a pickle, which no job reads. {to_get(name)}")
        return completed | known["x-download"]
    if completed["revision"] is None:
        _check_path(name, completed["weights"], where)
    return completed


def to_get(name: str) -> str:
    """How to get a network's weights, in a sentence."""
    return f"To get them: {schema(f'extractors/{name}')['x-where']}."


def _check_path(name, weights, where):
    """Refuse a path that does not exist, or is a file of another kind than safetensors."""
    path = ROOT / weights
    if not path.exists():
        raise ConfigurationError(
            f"{where} does not exist; a repository of the Hugging Face Hub needs its 'revision', too. {to_get(name)}"
        )
    if path.is_file() and path.suffix != ".safetensors":
        raise ConfigurationError(
            f"{where} is no safetensors file, the only kind that jobs read; make one: python "
            f"workflow_scripts/tools/convert_weights.py {weights} {path.stem}.safetensors."
        )
