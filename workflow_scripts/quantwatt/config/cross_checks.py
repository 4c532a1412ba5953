"""Check what the entries of an experiment say of one another, and the files that they name."""

import os
from pathlib import Path

from quantwatt.artifacts import text_files
from quantwatt.artifacts.errors import DataError
from quantwatt.config.methods import is_external, is_quantized, needs_calibration
from quantwatt.config.metric_entries import compares_with_reference, features_of
from quantwatt.config.schemas import ConfigurationError
from quantwatt.config.suggestions import near, nearest
from quantwatt.data import datasets, prompts
from quantwatt.data.sources import read_running_text, read_sentences
from quantwatt.jobs.fingerprints import ROOT
from quantwatt.models import model_folder
from quantwatt.registry import schema

READERS = {"sentences": read_sentences, "running": read_running_text}  # by a family's x-texts
LOCAL_JUDGE = "local-dir:"  # open_clip's word for a model in a folder


def check_references(experiment, file):  # noqa: C901  (many checks, one after another)
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
    for name in experiment["metrics"]:
        if compares_with_reference(name) and reference is None:
            raise ConfigurationError(f"{file}: reference: missing, and metric '{name}' compares with real images.")
    if experiment["sensitivities"] and experiment["kind"] == "text":
        raise ConfigurationError(f"{file}: sensitivities: they compare images, and these models read text.")
    asked = {f"samplings.{name}": entry for name, entry in experiment["samplings"].items()}
    asked |= {f"sensitivities.{name}": entry for name, entry in experiment["sensitivities"].items()}
    sources = dict(asked)
    if experiment["calibration"]:
        sources["calibration"] = experiment["calibration"]
    files = _sources(sources, experiment["models"], file)
    for name in experiment["metrics"]:
        if features_of(name) == "classifier" and experiment["classifier"] is None:
            raise ConfigurationError(
                f"{file}: classifier: missing, and metric '{name}' needs one that reads the images."
            )
        if schema(f"metrics/{name}").get("x-kind", "image") != experiment["kind"]:
            other = {"image": "text models", "text": "images"}[experiment["kind"]]
            raise ConfigurationError(f"{file}: metrics.{name}: a metric of {other}, and this experiment has none.")
    study = experiment["study"]
    if study and schema("experiment")["properties"]["study"]["x-kind"][study] != experiment["kind"]:
        other = {"image": "text models", "text": "images"}[experiment["kind"]]
        raise ConfigurationError(f"{file}: study: {study} is one of {other}, and this experiment has none.")
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
    _check_models(experiment["models"], file)
    if experiment["kind"] == "image":
        for where, entry in sources.items():
            _check_prompts(where, entry, file)
    else:
        for where, entry in sources.items():
            _check_texts(where, entry, experiment["models"], file)


def _check_prompts(where, entry, file):
    """A file of prompts that is there must be read, and one that is not yet must have enough of them, too."""
    path = entry["prompts"]
    if (ROOT / path).exists():
        found, notes = _read(prompts.read, path, f"{file}: {where}.prompts")
        text_files.say(path, notes)
        lines = len(found)
    else:
        lines = datasets.entries(path)
    if lines < (1 if entry.get("cycle") else entry.get("images", 1)):
        raise ConfigurationError(
            f"{file}: {where}.images: {entry['images']} images need as many prompts, and {path} has {lines} (cycle: "
            "true takes them again from the first)."
        )


def _check_texts(where, entry, models, file):
    """A file of texts that is there must be one that the models' families read."""
    for name, settings in models.items():
        path = entry["texts"][name] if isinstance(entry["texts"], dict) else entry["texts"]
        read = READERS[schema(f"families/{settings['family']}").get("x-texts", "running")]
        if (ROOT / path).exists():
            _read(read, path, f"{file}: {where}.texts")


def _read(read, path, where):
    """What a reader finds in a file of the project, its refusal as one of the configuration."""
    try:
        return read(ROOT / path)
    except DataError as error:
        raise ConfigurationError(f"{where}: {str(error).replace(str(ROOT / path), path)}") from error


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
