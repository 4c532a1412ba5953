"""Read, check and complete the configuration; no other module does.

`config.yaml` selects the experiment and sets how this machine measures; `resources/experiments/NAME.yaml` holds the
grid of models, methods and samplings. Both are checked against the JSON schemas of `resources/schemas/` before any job
starts. All defaults of the schemas are filled in, so that a rule's slice of the configuration is complete.
"""

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantwatt.config import grid_size, limits
from quantwatt.config.component_entries import complete_components, with_denoiser
from quantwatt.config.cross_checks import check_references
from quantwatt.config.method_entries import complete_method
from quantwatt.config.methods import is_mixed
from quantwatt.config.mixed_entries import check_mixed, complete_sensitivity
from quantwatt.config.network_entries import complete_network
from quantwatt.config.objectives import objectives
from quantwatt.config.policy_file import load_policy
from quantwatt.config.protocols import with_protocol
from quantwatt.config.schedule_entries import check_steps, complete_schedule
from quantwatt.config.schemas import ConfigurationError, complete, complete_plugin, lookup, plugin
from quantwatt.config.suggestions import nearest
from quantwatt.config.yaml_files import parse, read_yaml
from quantwatt.jobs.fingerprints import ROOT
from quantwatt.registry import schema

EXPERIMENTS = ROOT / "resources" / "experiments"
MACHINE = {"idle_w", "full_w"}  # keys of config.yaml's measuring that an experiment must not set
COMMAND_LINE = "--config"  # name of the command line in messages
TYPES = {"string": str, "boolean": bool, "integer": int, "number": (int, float), "null": type(None), "object": dict}


def sources(
    configfiles: Iterable[str | Path], words: Iterable[str] | None, replaced: bool = False, folder: Path | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """All sources of the configuration with their names in messages: `config.yaml`, --configfile, --config.

    Args:
        configfiles: paths given by --configfile.
        words: KEY=VALUE words given by --config.
        replaced: whether the files of --configfile replace `config.yaml`.
        folder: of `config.yaml`; default: the current folder.
    Returns:
        list of (name, mapping); later sources override earlier ones key by key.
    Raises:
        ConfigurationError: a file or value is not YAML.
    """
    here = folder or Path.cwd()
    paths = [*([] if replaced else [here / "config.yaml"]), *map(Path, configfiles)]
    names = [str(path.relative_to(here)) if path.is_relative_to(here) else str(path) for path in paths]
    files = [(name, read_yaml(path, name)) for name, path in zip(names, paths, strict=True)]
    return [*files, (COMMAND_LINE, values(words))]


def load_config(config: dict[str, Any] | list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Check the workflow's own configuration and fill in its defaults.

    Args:
        config: a mapping, as in `config.yaml`, or a list as `sources` returns.
    Returns:
        a new, complete mapping.
    Raises:
        ConfigurationError: an unknown key or a wrong value; names its source.
    """
    several = config if isinstance(config, list) else [("config.yaml", config)]
    merged = {}
    for source, settings in several:
        if "experiment" in settings:
            _check_experiment_name(settings["experiment"], source)
        complete(settings, schema("config"), source, "")
        _merge(merged, copy.deepcopy(settings))
    completed = complete(merged, schema("config"), several[0][0], "")
    completed["results"] = _results_folder(completed["results"], source_of("results", several))
    if wrong := limits.wrong(limits.of(completed)):
        raise ConfigurationError(f"{source_of('min_quality', several)}: {wrong}")
    _check_files(completed, several)
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


def _check_files(config, sources):
    """Refuse a policy that is missing or wrong, and a folder to compare with that is no other result."""
    if config["gate"]:
        if not (ROOT / config["gate"]).is_file():
            raise ConfigurationError(f"{source_of('gate', sources)}: gate: the file '{config['gate']}' does not exist.")
        load_policy(ROOT / config["gate"], config["gate"])
    if folder := config["baseline_results"]:
        where = f"{source_of('baseline_results', sources)}: baseline_results: '{folder}'"
        folder = config["baseline_results"] = os.path.normpath(folder)
        if Path(folder).absolute() == Path(config["results"], config["experiment"]).absolute():
            raise ConfigurationError(f"{where} is where this run writes; copy the earlier result to another folder.")
        if not Path(folder, "tables/summary.csv").is_file():
            raise ConfigurationError(f"{where} has no tables/summary.csv; name results/EXPERIMENT of a finished run.")


def source_of(key: str, sources: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The name of the last source that has a key, or of the first source if none has it."""
    return next((name for name, settings in reversed(sources) if key in settings), sources[0][0])


def values(words: Iterable[str] | None) -> dict[str, Any]:
    """Convert KEY=VALUE words of the command line to a mapping; values are parsed like those of a file.

    Snakemake parses them differently: nested values as text, 1_000 as a number even for a name, and null as text.

    Raises:
        ConfigurationError: a value is not YAML.
    """
    settings = {}
    for word in words or ():
        key, _, text = word.partition("=")
        value = parse(text, f"{COMMAND_LINE}: {key}")
        types = schema("config")["properties"].get(key, {}).get("type", [])
        types = [types] if isinstance(types, str) else types
        if "string" in types and not isinstance(value, tuple(TYPES[name] for name in types)):
            value = text  # such as a name that consists of digits
        _merge(settings, {key: value})
    return settings


def _merge(into, mapping):
    """Merge `mapping` into another mapping recursively; values of `mapping` win."""
    for key, value in mapping.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _check_experiment_name(name, file):
    """Explain the likeliest mistake, a file instead of an experiment's name; the schema checks the rest."""
    path = Path(name) if isinstance(name, str) else Path()
    if path.suffix in (".yaml", ".yml") and path.stem:
        where = "" if path.parent.name in ("", "experiments") else f", and put it into {EXPERIMENTS.relative_to(ROOT)}"
        raise ConfigurationError(
            f"{file}: experiment: '{name}' is a file; write its name alone, experiment={path.stem}{where}."
        )


def _results_folder(results, file):
    """The normalized folder of results: Snakemake treats a path with a slash at its end as another folder."""
    folder = os.path.normpath(results)
    if folder in ("/", "//", ".", ".."):
        raise ConfigurationError(f"{file}: results: '{results}' is no folder for results alone; name another one.")
    parent = _existing(folder)
    if not parent.is_dir():
        raise ConfigurationError(f"{file}: results: '{parent}' is a file and no folder; name another one.")
    return folder


def _existing(folder):
    """The folder, or its nearest parent that exists."""
    folder = Path(folder).absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def check_writable(results: str | Path, file: str = "config.yaml") -> None:
    """Refuse a folder of results that cannot be written or created, before any job starts.

    Raises:
        ConfigurationError: the folder, or its nearest existing parent, is not writable.
    """
    parent = _existing(results)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"{file}: results: '{results}' cannot be written by this user ({parent}); name another folder."
        )


def load_experiment(name: str, file: str = "config.yaml") -> dict[str, Any]:
    """Read `resources/experiments/NAME.yaml`, check it, and fill in every default.

    Args:
        name: of the experiment.
        file: the source of the name, for messages.
    Returns:
        {"kind", "models", "methods", "baseline", "samplings", "calibration", "sensitivities", "reference", "metrics",
        "cells"}; `kind` is "image" or "text"; `cells` is the explicit list of {"model", "method", "sampling"}, for text
        with "kind". The allocation of a mixed method also holds its "candidates", {name: formats}, and a sensitivity
        the "objectives" of the methods that use it.
    Raises:
        ConfigurationError: the experiment does not exist, has an unknown key or a wrong value, or its entries
            contradict each other.
    """
    path = EXPERIMENTS / f"{name}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in EXPERIMENTS.glob("*.yaml"))
        other = path.with_suffix(".yml")
        hint = f"; rename {other.name} to {path.name}" if other.exists() else nearest(name, known)
        raise ConfigurationError(f"{file}: experiment: there is no '{name}' in resources/experiments{hint}.")
    file = str(path.relative_to(ROOT))
    return check_experiment(read_yaml(path, file), file)


def check_experiment(raw: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Check and complete a parsed experiment, as `load_experiment` does; `file` is its name in messages."""
    experiment = complete(with_protocol(raw, file), schema("experiment"), file, "")
    grid_size.check_cells(experiment, file)
    experiment["models"] = {
        name: complete_plugin(entry, "families", "family", file, f"models.{name}")
        for name, entry in experiment["models"].items()
    }
    experiment["methods"] = {
        name: _complete_method(entry or {}, experiment["models"], file, f"methods.{name}")
        for name, entry in experiment["methods"].items()
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
    check_steps(experiment, file)
    for name, entry in experiment["sensitivities"].items():
        entry["objectives"] = objectives(experiment["methods"].values(), name)
    experiment["extractors"] = {
        name: complete_network(name, entry, file) for name, entry in experiment["extractors"].items()
    }
    experiment["metrics"] = {
        name: complete(
            entry or {}, schema(f"metrics/{plugin('metrics', name, file, 'metrics')}"), file, f"metrics.{name}"
        )
        for name, entry in experiment["metrics"].items()
    }
    _check_measuring(experiment, file)
    check_references(experiment, file)
    experiment["cells"] = [
        {"model": model, "method": method, "sampling": sampling} | ({"kind": kind} if kind == "text" else {})
        for model in experiment["models"]
        for method in experiment["methods"]
        for sampling in experiment["samplings"]
    ]
    return experiment


def _complete_method(entry, models, file, where):
    method = complete_method(with_denoiser(entry, models, file, where), file, where)
    return complete_schedule(complete_components(method, file, where), file, where)


def _check_measuring(experiment, file):
    """Check an experiment's changes of the measuring protocol; the machine's power must be set in config.yaml."""
    changes = experiment["measuring"]
    for key in MACHINE.intersection(changes):
        raise ConfigurationError(f"{file}: measuring.{key}: the machine's own; set it in config.yaml.")
    complete(changes, schema("config")["properties"]["measuring"], file, "measuring")
    for kind in ("sampling", "method"):
        for name in changes.get(f"{kind}s") or ():
            lookup(experiment[f"{kind}s"], name, kind, file)


def _kind(models, file):
    """The kind of an experiment's models, "image" or "text", from their families' schemas."""
    kinds = {name: schema(f"families/{model['family']}").get("x-kind", "image") for name, model in models.items()}
    first = {kind: name for name, kind in reversed(kinds.items())}
    if len(first) > 1:
        raise ConfigurationError(
            f"{file}: models: '{first['image']}' makes images and '{first['text']}' reads text; put them into two "
            "experiments."
        )
    return next(iter(first))


def for_model(entry: dict[str, Any], model: str) -> dict[str, Any]:
    """A sampling or calibration with the texts of one model, if it names texts per model."""
    texts = entry.get("texts")
    return {**entry, "texts": texts[model]} if isinstance(texts, dict) else entry
