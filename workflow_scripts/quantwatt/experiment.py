"""Read, check and complete the configuration: the one place that does.

`config.yaml` says which experiment runs and how this machine measures; `resources/experiments/NAME.yaml` holds the
grid of models, methods and samplings. Both are checked against the JSON schemas of `resources/schemas/` before any
job starts, and every default named there is filled in, so that a rule's slice of the configuration is complete.
"""

import os
from pathlib import Path

from quantwatt.cross_checks import check_references
from quantwatt.method_entries import complete_method
from quantwatt.methods import is_mixed, schema
from quantwatt.mixed_entries import check_mixed, complete_sensitivity
from quantwatt.objectives import objectives
from quantwatt.paths import ROOT
from quantwatt.schemas import ConfigurationError, complete, complete_plugin, lookup, nearest, plugin, read_yaml

EXPERIMENTS = ROOT / "resources" / "experiments"
MACHINE = {"idle_w", "full_w"}  # of config.yaml's measuring


def load_config(config, file="config.yaml"):
    """Check the workflow's own configuration and fill in its defaults.

    Args:
        config: the mapping Snakemake read (`config.yaml` and `--config`).
    Returns:
        a new, complete mapping.
    Raises:
        ConfigurationError: an unknown key or a wrong value.
    """
    completed = complete(config, schema("config"), file, "")
    weights, watts = completed["inception_weights"], completed["measuring"]
    if weights not in (None, "download") and not (ROOT / weights).is_file():
        raise ConfigurationError(
            f"{file}: inception_weights: '{weights}' does not exist; null uses the judge's features."
        )
    if watts["idle_w"] >= watts["full_w"]:
        raise ConfigurationError(
            f"{file}: measuring.idle_w: {watts['idle_w']} W idle is not below full_w, {watts['full_w']} W fully loaded."
        )
    return completed


def check_writable(results, file="config.yaml"):
    """Refuse a folder of results that cannot be written or made, before any job starts.

    Raises:
        ConfigurationError: so it is.
    """
    folder = Path(results).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{file}: results: '{results}' cannot be written by this user ({there}); name another folder."
        )


def load_experiment(name):
    """Read `resources/experiments/NAME.yaml`, check it, and fill in every default.

    Returns:
        {"kind", "models", "methods", "baseline", "samplings", "calibration", "sensitivities", "reference", "metrics",
        "cells"}; `kind` is "image" or "text"; `cells` is the explicit list of {"model", "method", "sampling"}, with
        "kind" where it is text. The allocation of a mixed method also holds its "candidates", {name: formats}, and a
        sensitivity its "objectives", those of the methods that choose by it.
    Raises:
        ConfigurationError: no such experiment, an unknown key, a wrong value, or an impossible combination.
    """
    path = EXPERIMENTS / f"{name}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in EXPERIMENTS.glob("*.yaml"))
        raise ConfigurationError(
            f"config.yaml: experiment: there is no '{name}' in resources/experiments{nearest(name, known)}."
        )
    file = str(path.relative_to(ROOT))
    return check_experiment(read_yaml(path, file), file)


def check_experiment(raw, file):
    """`load_experiment` on an already parsed mapping; `file` names it in messages."""
    experiment = complete(raw, schema("experiment"), file, "")
    experiment["models"] = {
        name: complete_plugin(entry, "families", "family", file, f"models.{name}")
        for name, entry in experiment["models"].items()
    }
    experiment["methods"] = {
        name: complete_method(entry or {}, file, f"methods.{name}") for name, entry in experiment["methods"].items()
    }
    kind = experiment["kind"] = _kind(experiment["models"], file)
    for name, method in experiment["methods"].items() if kind == "text" else ():
        if method["compile"]:
            raise ConfigurationError(
                f"{file}: methods.{name}.compile: texts of every length would be compiled anew; drop the key."
            )
    experiment["samplings"] = {
        name: complete(entry, schema(f"samplings/{kind}"), file, f"samplings.{name}")
        for name, entry in experiment["samplings"].items()
    }
    if experiment["calibration"] is not None:
        experiment["calibration"] = complete(
            experiment["calibration"], schema(f"calibrations/{kind}"), file, "calibration"
        )
    experiment["sensitivities"] = {
        name: complete_sensitivity(entry, file, f"sensitivities.{name}")
        for name, entry in experiment["sensitivities"].items()
    }
    for name, method in experiment["methods"].items():
        if is_mixed(method):
            check_mixed(method, experiment["sensitivities"], file, f"methods.{name}")
    for name, entry in experiment["sensitivities"].items():
        entry["objectives"] = objectives(experiment["methods"].values(), name)
    experiment["metrics"] = {
        name: complete(
            entry or {}, schema(f"metrics/{plugin('metrics', name, file, 'metrics')}"), file, f"metrics.{name}"
        )
        for name, entry in experiment["metrics"].items()
    }
    _check_measuring(experiment["measuring"], experiment["samplings"], file)
    check_references(experiment, file)
    experiment["cells"] = [
        {"model": model, "method": method, "sampling": sampling} | ({"kind": kind} if kind == "text" else {})
        for model in experiment["models"]
        for method in experiment["methods"]
        for sampling in experiment["samplings"]
    ]
    return experiment


def _check_measuring(changes, samplings, file):
    """An experiment may change the protocol, not say what this machine draws."""
    for key in MACHINE.intersection(changes):
        raise ConfigurationError(f"{file}: measuring.{key}: the machine's own; set it in config.yaml.")
    complete(changes, schema("config")["properties"]["measuring"], file, "measuring")
    for name in changes.get("samplings") or ():
        lookup(samplings, name, "sampling", file)


def _kind(models, file):
    """What the models of an experiment are asked for, "image" or "text": their families' schemas say so."""
    kinds = {name: schema(f"families/{model['family']}").get("x-kind", "image") for name, model in models.items()}
    first = {kind: name for name, kind in reversed(kinds.items())}
    if len(first) > 1:
        raise ConfigurationError(
            f"{file}: models: '{first['image']}' makes images and '{first['text']}' reads text; put them into two "
            "experiments."
        )
    return next(iter(first))


def for_model(entry, model):
    """A sampling or calibration with the texts of one model, where it names them model by model."""
    texts = entry.get("texts")
    return {**entry, "texts": texts[model]} if isinstance(texts, dict) else entry
