"""Check what the entries of an experiment say of one another, and the files that they name."""

import os
from pathlib import Path

from quantwatt import datasets
from quantwatt.methods import is_external, is_quantized, needs_calibration, schema
from quantwatt.paths import ROOT
from quantwatt.schemas import ConfigurationError
from quantwatt.suggestions import near, nearest

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
            raise ConfigurationError(f"{file}: {entry}: '{path}' does not exist{_way_out(path, entry, file)}.")
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


def _way_out(path, entry, file):
    """What to do about a path that does not exist: the end of a sentence."""
    if path.startswith("~"):
        return "; there is no such user, whose home folder it names"
    if "$" in path:
        return "; variables are not replaced in paths, so write it out"
    parent = Path(path).parent
    names = os.listdir(ROOT / parent) if os.path.isdir(ROOT / parent) else []
    names += [Path(name).name for name in datasets.EXTRACTS if Path(datasets.FOLDER, name).parent == parent]
    if match := near(Path(path).name, names):
        return f"; did you mean '{parent / match}'"
    if ".texts" in entry:
        return f"; if it is a file of your own, put it there ({file} says what it holds)"
    if not os.path.isabs(path):
        return "; a path that does not begin with / is looked for in the project's folder, where Snakefile is"
    return ""


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
