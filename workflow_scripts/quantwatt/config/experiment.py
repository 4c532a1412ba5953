"""Read, check and complete the configuration: the one place that does.

`config.yaml` says which experiment runs and how this machine measures; `resources/experiments/NAME.yaml` holds the
grid of models, methods and samplings. Both are checked against the JSON schemas of `resources/schemas/` before any
job starts, and every default named there is filled in, so that a rule's slice of the configuration is complete.
"""

import copy
import os
from pathlib import Path

from quantwatt.config import grid_size
from quantwatt.config.cross_checks import check_references
from quantwatt.config.method_entries import complete_method
from quantwatt.config.methods import is_mixed
from quantwatt.config.mixed_entries import check_mixed, complete_sensitivity
from quantwatt.config.objectives import objectives
from quantwatt.config.schemas import ConfigurationError, complete, complete_plugin, lookup, plugin
from quantwatt.config.suggestions import nearest
from quantwatt.config.yaml_files import parse, read_yaml
from quantwatt.jobs.fingerprints import ROOT
from quantwatt.registry import schema

EXPERIMENTS = ROOT / "resources" / "experiments"
MACHINE = {"idle_w", "full_w"}  # of config.yaml's measuring
COMMAND_LINE = "--config"  # the name of that source in messages
TYPES = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "null": type(None), "object": dict}


def sources(configfiles, words, replaced=False, folder=None):
    """All that says how to run, each with its name in messages: `config.yaml`, --configfile, --config.

    Args:
        configfiles: paths given by --configfile.
        words: KEY=VALUE words given by --config.
        replaced: whether these replace `config.yaml`.
        folder: where that is; the current folder without it.
    Returns:
        list of (name, mapping); the later win, key by key.
    Raises:
        ConfigurationError: a file or value is no YAML.
    """
    here = folder or Path.cwd()
    paths = [*([] if replaced else [here / "config.yaml"]), *map(Path, configfiles)]
    names = [str(path.relative_to(here)) if path.is_relative_to(here) else str(path) for path in paths]
    files = [(name, read_yaml(path, name)) for name, path in zip(names, paths, strict=True)]
    return [*files, (COMMAND_LINE, values(words))]


def load_config(config):
    """Check the workflow's own configuration and fill in its defaults.

    Args:
        config: a mapping, as `config.yaml` has it, or several as of `sources`.
    Returns:
        a new, complete mapping.
    Raises:
        ConfigurationError: an unknown key or a wrong value, named with the source that has it.
    """
    several = config if isinstance(config, list) else [("config.yaml", config)]
    merged = {}
    for source, own in several:
        if "experiment" in own:
            _check_experiment_name(own["experiment"], source)
        complete(own, schema("config"), source, "")
        _merge(merged, copy.deepcopy(own))
    completed = complete(merged, schema("config"), several[0][0], "")
    completed["results"] = _results_folder(completed["results"], source_of("results", several))
    weights, watts = completed["inception_weights"], completed["measuring"]
    if weights not in (None, "download") and not (ROOT / weights).is_file():
        raise ConfigurationError(
            f"{source_of('inception_weights', several)}: inception_weights: '{weights}' does not exist; null uses the "
            "judge's features."
        )
    if watts["idle_w"] >= watts["full_w"]:
        raise ConfigurationError(
            f"{source_of('measuring', several)}: measuring.idle_w: {watts['idle_w']} W idle is not below full_w, "
            f"{watts['full_w']} W fully loaded."
        )
    return completed


def source_of(key, sources):
    """The name of the last of several (name, mapping) that has a key, or the first's where none has."""
    return next((name for name, own in reversed(sources) if key in own), sources[0][0])


def values(words):
    """The mapping that KEY=VALUE words of the command line make, their values read as those of a file are.

    Snakemake reads them otherwise: whatever is nested as text, 1_000 as a number even for a name, and null as a text.

    Raises:
        ConfigurationError: a value is no YAML.
    """
    found = {}
    for word in words or ():
        key, _, text = word.partition("=")
        value = parse(text, f"{COMMAND_LINE}: {key}")
        types = schema("config")["properties"].get(key, {}).get("type", [])
        types = [types] if isinstance(types, str) else types
        if "string" in types and not isinstance(value, tuple(TYPES[name] for name in types)):
            value = text  # a name of digits
        _merge(found, {key: value})
    return found


def _merge(into, mapping):
    """Recursively: what `mapping` has wins."""
    for key, value in mapping.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _check_experiment_name(name, file):
    """A file instead of its name is the likeliest mistake; the schema says the rest."""
    path = Path(name) if isinstance(name, str) else Path()
    if path.suffix in (".yaml", ".yml") and path.stem:
        where = "" if path.parent.name in ("", "experiments") else f", and put it into {EXPERIMENTS.relative_to(ROOT)}"
        raise ConfigurationError(
            f"{file}: experiment: '{name}' is a file; write its name alone, experiment={path.stem}{where}."
        )


def _results_folder(results, file):
    """The folder of results, without a slash at its end, which Snakemake would take for another one."""
    folder = os.path.normpath(results)
    if folder in ("/", "//", ".", ".."):
        raise ConfigurationError(f"{file}: results: '{results}' is no folder for results alone; name another one.")
    there = _existing(folder)
    if not there.is_dir():
        raise ConfigurationError(f"{file}: results: '{there}' is a file and no folder; name another one.")
    return folder


def _existing(folder):
    """The folder, or the first of those around it that exists."""
    folder = Path(folder).absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def check_writable(results, file="config.yaml"):
    """Refuse a folder of results that cannot be written or made, before any job starts.

    Raises:
        ConfigurationError: so it is.
    """
    there = _existing(results)
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{file}: results: '{results}' cannot be written by this user ({there}); name another folder."
        )


def load_experiment(name, file="config.yaml"):
    """Read `resources/experiments/NAME.yaml`, check it, and fill in every default.

    Args:
        name: of the experiment.
        file: what names it, for messages.
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
        other = path.with_suffix(".yml")
        hint = f"; rename {other.name} to {path.name}" if other.exists() else nearest(name, known)
        raise ConfigurationError(f"{file}: experiment: there is no '{name}' in resources/experiments{hint}.")
    file = str(path.relative_to(ROOT))
    return check_experiment(read_yaml(path, file), file)


def check_experiment(raw, file):
    """`load_experiment` on an already parsed mapping; `file` names it in messages."""
    experiment = complete(raw, schema("experiment"), file, "")
    grid_size.check_cells(experiment, file)
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
