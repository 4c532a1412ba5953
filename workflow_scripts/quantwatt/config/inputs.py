"""Input files of jobs that depend on the experiment's entries, their command-line arguments, and hashes of local files.

Wildcards are plain mappings, {"model": NAME, ...}: this module does not need Snakemake.
"""

from pathlib import Path

from quantwatt.artifacts import image_parts
from quantwatt.config import methods, metric_entries, programs
from quantwatt.config.cross_checks import LOCAL_JUDGE
from quantwatt.config.plan import Plan
from quantwatt.config.schemas import ConfigurationError
from quantwatt.data import datasets
from quantwatt.jobs import fingerprints
from quantwatt.models import model_folder


def _sensitivity(plan, names):
    """The tables of all jobs of a sensitivity."""
    jobs = range(plan.entry("sensitivity", names)["jobs"])
    return {"tables": [plan.path("sensitivity_job", names | {"job": job}) for job in jobs]}


def _candidates(plan, names):
    """The tables that a mixed method's integer programs read."""
    method = plan.entry("method", names)
    wildcards = names | {"sensitivity": method["allocation"]["sensitivity"]}
    files = ["sensitivity", *(["costs"] if programs.needs_costs(method) else [])]
    return {file: plan.path(file, wildcards) for file in files}


def _allocate(plan, names):
    """For a mixed method the choices of its programs, and the trials' image errors if there are several choices."""
    method, files = plan.entry("method", names), []
    if methods.is_mixed(method):
        files = ["candidates", *(["trials"] if programs.has_several_choices(method) else [])]
    return {file: plan.path(file, names) for file in files}


def _quantize(plan, names):
    """The results of an external solver, and calibration data."""
    method, inputs = plan.entry("method", names), {}
    if methods.is_external(method):
        inputs["solved"] = plan.path("solved", names | {"backend": method["solver"]["name"]})
    if methods.needs_calibration(method):
        inputs["calibration"] = plan.path("calibration", names)
    return inputs


def _share_weights(plan, names):
    """The checkpoint whose denoiser a method shares, and the weights of its components."""
    file, shared = plan.weights_of[names["method"]]
    method = plan.entry("method", names)
    parts = {name: methods.component_hash(methods.of_component(method, name)) for name in method.get("components", ())}
    made = [plan.path("component", names | {"component": name, "hash": value}) for name, value in parts.items()]
    return {"weights": plan.path(file, names | {"method": shared}), **({"components": made} if made else {})}


def _quantize_component(plan, names):
    """Calibration data of a component."""
    needed = methods.needs_calibration(plan.entry("component", names))
    return {"calibration": plan.path("component_calibration", names)} if needed else {}


def _gather_images(plan, names):
    """The manifests of all parts of an image set."""
    return {"parts": [plan.path("part", names | {"first": first}) for first in plan.parts_of(names)]}


def _reference(plan, names):
    """The folder of real images if it is a known data set; other folders are tracked by their fingerprint."""
    folder = plan.entry("reference", names).get("folder")
    return {"images": [folder] if folder and datasets.name_of(folder) else []}


def _features(plan, names):
    """The images and the weights, and the baseline's images for a network that reads pairs."""
    inputs = {"images": plan.path("images", names), "weights": plan.path("extractor", names)}
    if metric_entries.reads_pairs(names["extractor"]):
        inputs["baseline"] = plan.path("images", names | {"method": plan.baseline})
    return inputs


def _reads_outputs(plan, names):
    """Whether a score reads images or predictions, as all of the baseline do that compare with the baseline."""
    is_baseline = names["method"] == plan.baseline
    compared_with = metric_entries.compared_with(names["metric"])
    return plan.extractor_of(names["metric"]) is None or (is_baseline and compared_with == "baseline")


def _score(plan, names):
    """The features of a cell, the reference and the baseline, or the outputs of the cell and the baseline."""
    plan.entry("metric", names)
    baseline, extractor = names | {"method": plan.baseline}, plan.extractor_of(names["metric"])
    if _reads_outputs(plan, names):
        return {plan.outputs: plan.path(plan.outputs, names), "baseline": plan.path(plan.outputs, baseline)}
    inputs = {"features": plan.path("features", names | {"extractor": extractor})}
    if metric_entries.compares_with_reference(names["metric"]):
        inputs["reference_features"] = plan.path("reference_features", {"extractor": extractor})
    if names["method"] != plan.baseline and not metric_entries.reads_pairs(extractor):
        inputs["baseline_features"] = plan.path("features", baseline | {"extractor": extractor})
    return inputs


_FILES = {
    "sensitivity": _sensitivity,
    "candidates": _candidates,
    "allocate": _allocate,
    "quantize": _quantize,
    "quantize_apart": _quantize,
    "quantize_component": _quantize_component,
    "share_weights": _share_weights,
    "gather_images": _gather_images,
    "reference": _reference,
    "features": _features,
    "score": _score,
}


def known_hash(plan: Plan, names: dict[str, str]) -> list[str]:
    """No input at all, for an archive whose sha256 is known; names: {"archive": below data/}.

    Raises:
        DataError: it is not known, so that nothing can be fetched.
    """
    if (name := names["archive"]) in datasets.ARCHIVES:  # `fetch` itself tells what only the user can provide
        datasets.sha256_of(name, plan.config["data_sha256"])
    return []


def files(plan: Plan, rule: str, names: dict[str, str]) -> dict[str, str | list[str]]:
    """The input files of a job that depend on its entries.

    Args:
        rule: a rule with such inputs; names: the wildcards.
    Returns:
        {name: path, or list of paths}.
    Raises:
        ConfigurationError: a wildcard names no entry.
    """
    return _FILES[rule](plan, names)


def arguments(plan: Plan, rule: str, names: dict[str, str]) -> str:
    """The command-line arguments for the files of `files`, as one string."""
    given = {name: [found] if isinstance(found, str) else found for name, found in files(plan, rule, names).items()}
    words = [f"--{name.replace('_', '-')} {' '.join(paths)}" for name, paths in given.items()]
    if rule == "score" and names["method"] == plan.baseline and _reads_outputs(plan, names):
        words.append("--is-baseline")
    return " ".join(words)


def partner(plan: Plan, names: dict[str, str]) -> str:
    """`features.py`'s argument for the baseline's images, which a network of pairs reads too; else nothing."""
    pairs = metric_entries.reads_pairs(names["extractor"])
    return f"--baseline {plan.path('images', names | {'method': plan.baseline})}" if pairs else ""


def part(plan: Plan, names: dict[str, str]) -> str:
    """`generate.py`'s argument for one part of an image set: the number of its first image, and the end (exclusive).

    Raises:
        ConfigurationError: no part begins there.
    """
    parts = plan.parts_of(names)
    if names["first"] not in parts:
        known = ", ".join(image_parts.part_name(part.start) for part in parts.values())
        raise ConfigurationError(f"{names['sampling']}: no part begins at {names['first']}; parts are {known}.")
    part = parts[names["first"]]
    return f"--part {part.start} {part.stop}"


def first_images(plan: Plan, names: dict[str, str]) -> str:
    """`gather_images.py`'s argument: the first images of all parts as a range, short for any number of parts."""
    parts = list(plan.parts_of(names).values())
    return f"0 {parts[-1].stop} {len(parts[0])}"


def fingerprint(plan: Plan, rule: str, names: dict[str, str]) -> str | None:
    """A hash of the local files that a job's entry names, so that changed content under the same path reruns the job.

    Args:
        rule: model, reference, fetch_weights or fetch_checkpoint.
    Returns:
        hex string; None where no file is local, or a rule may make the file.
    Raises:
        DataError: a file cannot be read.
    """
    if rule == "model":
        model = plan.entry("model", names)
        if not model.get("path"):
            return None
        read = model_folder.read_files(fingerprints.ROOT / model["path"], model)
        adapters = [entry["path"] for entry in model.get("adapters") or () if entry.get("path")]
        return " ".join([fingerprints.fingerprint(model["path"], read), *map(fingerprints.fingerprint, adapters)])
    if rule == "fetch_checkpoint":
        return _content(plan.entry("checkpoint", names).get("path"))
    if rule == "reference":
        return _content(plan.entry("reference", names).get("folder"))
    entry = plan.entry("extractor", names)
    if names["extractor"] == "judge":
        local = entry["model"].startswith(LOCAL_JUDGE)
        return _content(entry["model"].removeprefix(LOCAL_JUDGE)) if local else None
    if entry.get("revision"):  # of a repository
        return None
    return _content(entry["path"] if names["extractor"] == "classifier" else entry["weights"])


def _content(path):
    """The hash of a file or folder; None for a download or a data set that a rule makes."""
    if not path or path == "download":
        return None
    name = datasets.name_of(path)
    if name in datasets.YOURS:
        return fingerprints.listing(path) if Path(path).is_dir() else None
    return None if name else fingerprints.fingerprint(path)
