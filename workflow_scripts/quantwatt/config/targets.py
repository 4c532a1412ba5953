"""Check the targets of Snakemake's command line before the graph of jobs is built.

Snakemake itself would say that no rule makes a target, or wrap this error in a traceback of input functions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantwatt.artifacts import layout
from quantwatt.config.experiment import EXPERIMENTS
from quantwatt.config.schemas import ConfigurationError, lookup
from quantwatt.config.suggestions import nearest

PLURAL = {  # {wildcard: the experiment's key with its entries}
    "model": "models",
    "method": "methods",
    "sampling": "samplings",
    "sensitivity": "sensitivities",
    "metric": "metrics",
}


NEEDS = {  # {rule: what it says where its key of config.yaml is not set}
    "gate": "gate: no policy is set; add --config gate=FILE after the targets.",
    "compare": "compare: no result to compare with is set; add --config baseline_results=FOLDER after the targets.",
}
KEYS = {"gate": "gate", "compare": "baseline_results"}  # {rule: its key of config.yaml}
MADE = {"gate": "gate", "comparison": "compare"}  # {name of a table: rule}


def check(word: str, experiment: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse a target of another experiment, of an unknown model, method, sampling or metric, or without its key.

    Args:
        word: of the command line; words that are not paths below the results are accepted.
        experiment, config: complete.
    Raises:
        ConfigurationError: the target belongs to another experiment, names an unknown entry, or its key is not set.
    """
    _check_key(word, config)
    results = Path(config["results"])
    target = Path(word.split("=", 1)[0])  # a word such as results=PATH sets something
    if target == results or not target.is_relative_to(results):
        return
    name, *parts = target.relative_to(results).parts
    if name != config["experiment"] and parts:
        _refuse_other(word, name, config["experiment"])
        return
    stage, *names = parts or [""]
    if stage == "tables" and names:
        _check_key(MADE.get(Path(names[0]).stem, ""), config)
    if names[:1] == ["reference"]:
        return
    names = [part.removesuffix(".json").removesuffix(".csv") for part in names if part != "manifest.json"]
    for kind, part in zip(layout.names_below(stage), names, strict=False):
        if kind in PLURAL:
            entry(experiment, kind, part, config["experiment"])


def entry(experiment: Mapping[str, Any], kind: str, name: str, title: str) -> dict[str, Any]:
    """One entry of an experiment; `kind` is one of PLURAL.

    Raises:
        ConfigurationError: there is no such entry; suggests the nearest spelling.
    """
    return lookup(experiment[PLURAL[kind]], name, kind, f"resources/experiments/{title}.yaml")


def _check_key(rule, config):
    if rule in NEEDS and config[KEYS[rule]] is None:
        raise ConfigurationError(NEEDS[rule])


def _refuse_other(word, name, current):
    known = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
    if name in known:
        raise ConfigurationError(
            f"{word}: this belongs to experiment '{name}', and '{current}' is the one that runs; add --config "
            f"experiment={name} after the targets."
        )
    if hint := nearest(name, known):
        raise ConfigurationError(f"{word}: there is no experiment '{name}'{hint}.")
