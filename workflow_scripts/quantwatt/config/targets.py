"""Check what somebody asks Snakemake for, before the graph of jobs is built.

Snakemake would say that no rule makes it, or wrap the same sentence in a traceback of input functions.
"""

from pathlib import Path

from quantwatt.config.experiment import EXPERIMENTS
from quantwatt.config.schemas import ConfigurationError, lookup
from quantwatt.config.suggestions import nearest

SINGULAR = {"sensitivities": "sensitivity"}
_CELL = ("models", "methods", "samplings")
_NAMED = {  # folder of an experiment's results: what the names in its paths are of
    "checkpoints": _CELL[:2],
    "allocation": _CELL[:2],
    "exchange": _CELL[:2],
    "solved": (None, *_CELL[:2]),  # of a solver first
    "images": _CELL,
    "predictions": _CELL,
    "measurements": _CELL,
    "features": _CELL,
    "scores": (*_CELL, "metrics"),
    "sensitivity": ("models", "sensitivities"),
    "costs": ("models", "sensitivities"),
}


def check(word, experiment, config):
    """Refuse a target of another experiment, or of an unknown model, method, sampling or metric.

    Args:
        word: of the command line; what is no file of results passes.
        experiment, config: complete.
    Raises:
        ConfigurationError: it is such a target.
    """
    results = Path(config["results"])
    target = Path(word.split("=", 1)[0])  # a word such as results=PATH sets something
    if target == results or not target.is_relative_to(results):
        return
    name, *parts = target.relative_to(results).parts
    if name != config["experiment"] and parts:
        _refuse_other(word, name, config["experiment"])
        return
    stage, *names = parts or [""]
    if names[:1] == ["reference"]:
        return
    names = [part.removesuffix(".json").removesuffix(".csv") for part in names if part != "manifest.json"]
    for kind, part in zip(_NAMED.get(stage, ()), names, strict=False):
        if kind:
            entry(experiment, kind, part, config["experiment"])


def entry(experiment, kind, name, title):
    """One entry of an experiment.

    Raises:
        ConfigurationError: there is none; with the nearest spelling.
    """
    what = SINGULAR.get(kind, kind.removesuffix("s"))
    return lookup(experiment[kind], name, what, f"resources/experiments/{title}.yaml")


def _refuse_other(word, name, current):
    known = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
    if name in known:
        raise ConfigurationError(
            f"{word}: this belongs to experiment '{name}', and '{current}' is the one that runs; add --config "
            f"experiment={name} after the targets."
        )
    if hint := nearest(name, known):
        raise ConfigurationError(f"{word}: there is no experiment '{name}'{hint}.")
