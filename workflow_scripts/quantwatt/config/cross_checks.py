"""Check the references between entries of an experiment, and the files that entries name."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantwatt.artifacts import instructions, text_files
from quantwatt.artifacts.errors import DataError
from quantwatt.config.methods import (
    ADAPTERS,
    DRAWING,
    FOREIGN,
    is_external,
    is_foreign,
    is_live,
    is_quantized,
    needs_calibration,
    python_of,
    quantizing,
)
from quantwatt.config.metric_entries import compares_with_reference, features_of, reads_trajectories
from quantwatt.config.network_entries import to_get
from quantwatt.config.schemas import ConfigurationError
from quantwatt.config.suggestions import near, nearest
from quantwatt.data import datasets, prompts
from quantwatt.data.sources import read_running_text, read_sentences
from quantwatt.jobs.fingerprints import ROOT
from quantwatt.models import model_folder
from quantwatt.registry import names, schema

READERS = {"sentences": read_sentences, "running": read_running_text}  # {x-texts of a family's schema: reader}
LOCAL_JUDGE = "local-dir:"  # open_clip's prefix for a model in a local folder


def check_references(experiment: Mapping[str, Any], file: str) -> None:
    """Refuse an entry that refers to a missing entry or names a missing or invalid file."""
    _check_baseline(experiment["baseline"], experiment["methods"], file)
    _check_drawing(experiment, file)
    _check_checkpoints(experiment, file)
    _check_calibration(experiment, file)
    sources = {f"samplings.{name}": entry for name, entry in experiment["samplings"].items()}
    sources |= {f"sensitivities.{name}": entry for name, entry in experiment["sensitivities"].items()}
    if experiment["calibration"]:
        sources["calibration"] = experiment["calibration"]
    files = _sources(sources, experiment["models"], file)
    for name in experiment["metrics"]:
        _check_metric(name, experiment, file)
    _check_kinds(experiment, file)
    for entry, path in (files | _other_files(experiment)).items():
        _check_file(entry, path, file)
    _check_models(experiment["models"], file)
    for where, entry in sources.items():
        if experiment["kind"] == "image":
            _check_prompts(where, entry, experiment["models"], file)
        else:
            _check_texts(where, entry, experiment["models"], file)


def _check_baseline(name, methods, file):
    """Refuse a baseline that is no method, or a quantized one."""
    if name not in methods:
        raise ConfigurationError(f"{file}: baseline: there is no method '{name}'{nearest(name, methods)}.")
    if is_quantized(methods[name]) or is_foreign(methods[name]):
        raise ConfigurationError(f"{file}: baseline: method '{name}' is quantized; the baseline must not be.")
    for key in DRAWING:
        if key in methods[name]:
            raise ConfigurationError(f"{file}: methods.{name}.{key}: the baseline draws as its sampling says; drop it.")


def _check_drawing(experiment, file):
    """Refuse a cache or steps of text models, and a cache for a denoiser or a sampling that has no use for it."""
    for name, method in experiment["methods"].items():
        where = f"{file}: methods.{name}"
        if experiment["kind"] == "text" and (keys := [key for key in DRAWING if key in method]):
            raise ConfigurationError(f"{where}.{keys[0]}: text models take no denoising steps; drop the key.")
        if cache := method.get("cache"):
            _check_cache(cache["name"], experiment, f"{where}.cache.name")


def _check_checkpoints(experiment, file):
    """Refuse code that builds text pipelines, and an environment without an interpreter."""
    for name, method in experiment["methods"].items():
        where = f"{file}: methods.{name}.{FOREIGN}"
        if is_live(method) and experiment["kind"] == "text":
            raise ConfigurationError(f"{where}.loader: text models take none that computes by itself; use gptq.")
        if ADAPTERS in method and not any(model.get(ADAPTERS) for model in experiment["models"].values()):
            raise ConfigurationError(f"{file}: methods.{name}.{ADAPTERS}: no model has adapters; drop the key.")
        env = method.get(FOREIGN, {}).get("env")
        if env and os.path.isdir(ROOT / env) and not os.path.exists(ROOT / python_of(method)):
            raise ConfigurationError(f"{where}.env: {env} has no bin/python; name the folder of a Python environment.")


def _check_cache(name, experiment, where):
    settings = schema(f"caches/{name}")
    for model, entry in experiment["models"].items() if settings.get("x-blocks") else ():
        if schema(f"families/{entry['family']}").get("x-unet") or _is_unet(entry):
            raise ConfigurationError(
                f"{where}: '{name}' skips blocks of a transformer, and model '{model}' has a UNet; leave the cache "
                "out, or put the model into an experiment of its own."
            )
    for sampling, entry in experiment["samplings"].items() if settings.get("x-guidance") else ():
        if entry["guidance"] <= 1:
            raise ConfigurationError(
                f"{where}: '{name}' estimates the second branch of guidance, and sampling '{sampling}' has none "
                f"(guidance {entry['guidance']})."
            )


def _is_unet(model):
    """Whether a model in a local folder is known to have a UNet."""
    index = ROOT / (model.get("path") or "") / model_folder.PIPELINE
    if not model.get("path") or not index.is_file():
        return False
    try:
        return any("UNet" in kind for _, kind in model_folder.listed_parts(index.parent, model).values())
    except DataError:
        return False  # `_check_models` says what is wrong


def _check_calibration(experiment, file):
    """Refuse a missing calibration entry if a method needs calibration data."""
    methods = experiment["methods"].items()
    calibrated = [name for name, method in methods if _is_calibrated(method)]
    if calibrated and experiment["calibration"] is None:
        raise ConfigurationError(f"{file}: calibration: missing, and method '{calibrated[0]}' needs calibration data.")


def _is_calibrated(method):
    return is_external(method) or any(needs_calibration(entry) for entry in quantizing(method))


def _check_metric(name, experiment, file):
    """Refuse a metric without its reference or classifier, or of the other kind of models."""
    if compares_with_reference(name) and experiment["reference"] is None:
        raise ConfigurationError(f"{file}: reference: missing, and metric '{name}' compares with real images.")
    for sampling, entry in experiment["samplings"].items() if reads_trajectories(name) else ():
        if "trajectory" not in entry:
            raise ConfigurationError(
                f"{file}: samplings.{sampling}.trajectory: missing, and metric '{name}' compares latents; write 512, "
                "the number of values to keep behind each step."
            )
    extractor = features_of(name)
    if extractor in names("extractors") and extractor not in experiment["extractors"]:
        raise ConfigurationError(
            f"{file}: extractors.{extractor}: missing, and metric '{name}' needs its 'weights'. {to_get(extractor)}"
        )
    if extractor == "classifier" and experiment["classifier"] is None:
        raise ConfigurationError(f"{file}: classifier: missing, and metric '{name}' needs one that reads the images.")
    if schema(f"metrics/{name}").get("x-kind", "image") != experiment["kind"]:
        raise ConfigurationError(
            f"{file}: metrics.{name}: a metric of {_other_kind(experiment)}, and this experiment has none."
        )


def _check_kinds(experiment, file):
    """Refuse sensitivities with text models, and a study of the other kind of models."""
    if experiment["sensitivities"] and experiment["kind"] == "text":
        raise ConfigurationError(f"{file}: sensitivities: they compare images, and these models read text.")
    study = experiment["study"]
    if study and schema("experiment")["properties"]["study"]["x-kind"][study] != experiment["kind"]:
        raise ConfigurationError(
            f"{file}: study: {study} is one of {_other_kind(experiment)}, and this experiment has none."
        )


def _other_kind(experiment):
    return {"image": "text models", "text": "images"}[experiment["kind"]]


def _other_files(experiment):
    """{key: path} of the files that an experiment names, except prompts and texts."""
    models, reference, judge = experiment["models"].items(), experiment["reference"], experiment["judge"]["model"]
    files = {f"models.{name}.path": model["path"] for name, model in models if model.get("path")}
    files |= {
        f"models.{name}.{ADAPTERS}.{number}.path": adapter["path"]
        for name, model in models
        for number, adapter in enumerate(model.get(ADAPTERS) or ())
        if adapter.get("path")
    }
    foreign = {name: entry[FOREIGN] for name, entry in experiment["methods"].items() if is_foreign(entry)}
    for key in ("path", "env"):
        files |= {f"methods.{name}.{FOREIGN}.{key}": entry[key] for name, entry in foreign.items() if entry.get(key)}
    if reference and reference.get("folder"):
        files["reference.folder"] = reference["folder"]
    if judge.startswith(LOCAL_JUDGE):
        files["judge.model"] = judge.removeprefix(LOCAL_JUDGE)
    if experiment["classifier"]:
        files["classifier.path"] = experiment["classifier"]["path"]
    return files


def _check_file(entry, path, file):
    """Refuse a path that does not exist, unless a rule makes the file or asks the user for it."""
    is_text = entry.endswith(".prompts") or ".texts" in entry
    if "{" in path or "}" in path:
        raise ConfigurationError(f"{file}: {entry}: '{path}': Snakemake reads braces as wildcards; rename it.")
    if datasets.entries(path) if is_text else datasets.name_of(path):
        return
    # os.path.exists is False for an invalid path, too.
    if not os.path.exists(ROOT / path) or (is_text and os.path.isdir(ROOT / path)):
        raise ConfigurationError(f"{file}: {entry}: '{path}' does not exist{_way_out(path, entry, file)}.")


def _check_prompts(where, entry, models, file):
    """Refuse an unreadable file of prompts, and too few prompts, also in a known file that is not fetched yet."""
    path = entry["prompts"]
    if (ROOT / path).exists():
        texts, notes = _read(prompts.read, path, f"{file}: {where}.prompts")
        text_files.say(path, notes)
        lines = len(texts)
        if instructions.pictures(texts):
            _check_pictures(where, entry, models, file)
    else:
        lines = datasets.entries(path) or 0
    if lines < (1 if entry.get("cycle") else entry.get("images", 1)):
        raise ConfigurationError(
            f"{file}: {where}.images: {entry['images']} images need as many prompts, and {path} has {lines} (cycle: "
            "true takes them again from the first)."
        )


def _check_pictures(where, entry, models, file):
    """Refuse prompts with input pictures where a model's family takes none, or where they are drawn in batches."""
    for name, settings in models.items():
        if not schema(f"families/{settings['family']}").get("x-pictures"):
            raise ConfigurationError(
                f"{file}: {where}.prompts: {entry['prompts']} names input pictures, and models.{name} is of family "
                f"'{settings['family']}', which takes none (diffusers does)."
            )
    if entry.get("batch_size", 1) > 1:
        raise ConfigurationError(
            f"{file}: {where}.batch_size: images with an input picture are drawn one by one; set 1, not "
            f"{entry['batch_size']}."
        )


def _check_texts(where, entry, models, file):
    """Refuse an existing file of texts that a model's family cannot read."""
    for name, settings in models.items():
        path = entry["texts"][name] if isinstance(entry["texts"], dict) else entry["texts"]
        read = READERS[schema(f"families/{settings['family']}").get("x-texts", "running")]
        if (ROOT / path).exists():
            _read(read, path, f"{file}: {where}.texts")


def _read(read, path, where):
    """Read a file of the project; raise the reader's DataError as ConfigurationError."""
    try:
        return read(ROOT / path)
    except DataError as error:
        raise ConfigurationError(f"{where}: {str(error).replace(str(ROOT / path), path)}") from error


def _check_models(models, file):
    """Refuse a model's folder that is incomplete or of another family, judged by its file names and JSON files."""
    for name, model in models.items():
        if not model.get("path") or datasets.name_of(model["path"]):
            continue
        try:
            model_folder.parts(ROOT / model["path"], model)
        except (DataError, OSError) as error:
            reason = str(error).replace(f"{ROOT}{os.sep}", "")
            raise ConfigurationError(f"{file}: models.{name}.path: {reason}") from error


def _way_out(path, entry, file):
    """How to fix a path that does not exist: the end of a sentence."""
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
    """{key: path} of the files that samplings and the calibration read; texts may be given per model."""
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
