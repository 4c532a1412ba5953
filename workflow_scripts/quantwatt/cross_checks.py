"""Check what the entries of an experiment say of one another, and the files that they name."""

import os
from pathlib import Path

from quantwatt import datasets, model_folder
from quantwatt.manifest import DataError
from quantwatt.methods import is_external, is_quantized, needs_calibration, schema
from quantwatt.paths import ROOT
from quantwatt.schemas import ConfigurationError, nearest

LOCAL_JUDGE = "local-dir:"  # open_clip's word for a model in a folder


def check_references(experiment, file):
    """Names that entries use of one another must exist, and so must the files they name."""
    methods = experiment["methods"]
    if experiment["baseline"] not in methods:
        raise ConfigurationError(
            f"{file}: baseline: there is no method '{experiment['baseline']}'"
            f"{nearest(experiment['baseline'], methods)}."
        )
    if is_quantized(methods[experiment["baseline"]]):
        raise ConfigurationError(
            f"{file}: baseline: method '{experiment['baseline']}' is quantized; the baseline must not be."
        )
    calibrated = [name for name, method in methods.items() if needs_calibration(method) or is_external(method)]
    if calibrated and experiment["calibration"] is None:
        raise ConfigurationError(f"{file}: calibration: missing, and method '{calibrated[0]}' needs calibration data.")
    reference = experiment["reference"]
    for name in ("fid", "kid"):
        if name in experiment["metrics"] and reference is None:
            raise ConfigurationError(f"{file}: reference: missing, and metric '{name}' compares with real images.")
    if experiment["sensitivities"] and experiment["kind"] == "text":
        raise ConfigurationError(f"{file}: sensitivities: they compare images, and these models read text.")
    asked = {f"samplings.{name}": entry for name, entry in experiment["samplings"].items()}
    asked |= {f"sensitivities.{name}": entry for name, entry in experiment["sensitivities"].items()}
    sources = dict(asked)
    if experiment["calibration"]:
        sources["calibration"] = experiment["calibration"]
    files = _sources(sources, experiment["models"], file)
    if "class-accuracy" in experiment["metrics"] and experiment["classifier"] is None:
        raise ConfigurationError(
            f"{file}: classifier: missing, and metric 'class-accuracy' needs one that reads the images."
        )
    for name in experiment["metrics"]:
        if schema(f"metrics/{name}").get("x-kind", "image") != experiment["kind"]:
            other = {"image": "text models", "text": "images"}[experiment["kind"]]
            raise ConfigurationError(f"{file}: metrics.{name}: a metric of {other}, and this experiment has none.")
    for name, model in experiment["models"].items():
        if model.get("path"):
            files[f"models.{name}.path"] = model["path"]
    if reference and reference.get("folder"):
        files["reference.folder"] = reference["folder"]
    if experiment["judge"]["model"].startswith(LOCAL_JUDGE):
        files["judge.model"] = experiment["judge"]["model"].removeprefix(LOCAL_JUDGE)
    if experiment["classifier"]:
        files["classifier.path"] = experiment["classifier"]["path"]
    for entry, path in files.items():
        is_text = entry.endswith(".prompts") or ".texts" in entry
        if "{" in path or "}" in path:
            raise ConfigurationError(f"{file}: {entry}: '{path}': Snakemake reads braces as wildcards; rename it.")
        if datasets.entries(path) if is_text else datasets.name_of(path):
            continue  # a rule makes it, or asks for it
        if not os.path.exists(ROOT / path) or (is_text and os.path.isdir(ROOT / path)):  # False, too, of no path at all
            known = (f"{datasets.FOLDER}/{name}" for name in datasets.EXTRACTS)
            folder = (ROOT / path).parent
            siblings = [str(Path(path).parent / name) for name in os.listdir(folder)] if os.path.isdir(folder) else []
            siblings += [name for name in known if Path(name).parent == Path(path).parent]
            hint = nearest(path, siblings)
            if ".texts" in entry and not hint:
                hint = f"; if it is a file of your own, put it there ({file} says what it holds)"
            raise ConfigurationError(f"{file}: {entry}: '{path}' does not exist{hint}.")
    _check_models(experiment["models"], file)
    for where, entry in asked.items() if experiment["kind"] == "image" else ():
        try:
            lines = _prompts(entry["prompts"])
        except (OSError, UnicodeDecodeError) as error:
            reason = "not a text in UTF-8" if isinstance(error, ValueError) else error.strerror
            raise ConfigurationError(
                f"{file}: {where}.prompts: '{entry['prompts']}' cannot be read: {reason}."
            ) from error
        if lines < (1 if entry.get("cycle") else entry["images"]):
            raise ConfigurationError(
                f"{file}: {where}.images: {entry['images']} images need as many prompts, and "
                f"{entry['prompts']} has {lines} (cycle: true takes them again from the first)."
            )


def _check_models(models, file):
    """Refuse a model's folder that is not whole or not of its family, by its names and JSON files alone."""
    for name, model in models.items():
        if not model.get("path") or datasets.name_of(model["path"]):
            continue
        try:
            model_folder.parts(ROOT / model["path"], model)
        except (DataError, OSError) as error:
            reason = str(error).replace(f"{ROOT}{os.sep}", "")
            raise ConfigurationError(f"{file}: models.{name}.path: {reason}") from error


def _prompts(path):
    """How many prompts a file has, or will have once it is made."""
    there = ROOT / path
    return len(there.read_text(encoding="utf-8").splitlines()) if there.exists() else datasets.entries(path)


def _sources(entries, models, file):
    """{key: path} of the files that samplings and the calibration read; texts may be given model by model."""
    files = {}
    for where, entry in entries.items():
        if not isinstance(entry.get("texts"), dict):
            key = "texts" if "texts" in entry else "prompts"
            files[f"{where}.{key}"] = entry[key]
            continue
        for name in entry["texts"].keys() ^ models.keys():
            if name in models:
                raise ConfigurationError(f"{file}: {where}.texts: there are none for model '{name}'.")
            raise ConfigurationError(f"{file}: {where}.texts: there is no model '{name}'{nearest(name, models)}.")
        files |= {f"{where}.texts.{name}": path for name, path in entry["texts"].items()}
    return files
