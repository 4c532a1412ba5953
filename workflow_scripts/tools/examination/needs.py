"""Checks of the inputs of one experiment: its models, data and weights, and their size."""

import os
from functools import partial
from pathlib import Path

from quantwatt.artifacts.dtypes import BYTES
from quantwatt.data import datasets
from quantwatt.jobs import model_memory
from quantwatt.jobs.fingerprints import ROOT
from tools.examination import MISSING, NOTE, OK, hardware


def checks(config, experiment):
    """{name: check} for an experiment."""
    functions = {f"model {name}": partial(model, entry) for name, entry in experiment["models"].items()}
    functions["data"] = partial(data, experiment)
    functions["weights"] = partial(weights, config, experiment)
    functions["sizes"] = partial(sizes, config, experiment)
    functions["solvers"] = partial(backends, experiment)
    return functions


def location(entry):
    """The folder of a model on this machine, or None if the model is not here."""
    if entry.get("path"):
        path = ROOT / Path(entry["path"]).expanduser()
        return path if path.is_dir() else None
    cache = Path(os.environ.get("HF_HUB_CACHE") or hardware.caches()["HF_HOME"] / "hub")
    snapshot = cache / f"models--{entry['hub'].replace('/', '--')}" / "snapshots" / entry["revision"]
    return snapshot if snapshot.is_dir() else None


def model(entry):
    folder = location(entry)
    if folder is None and entry.get("path"):
        return MISSING, f"{entry['path']} is not there", "put the model there, or change its path"
    if folder is None:
        return NOTE, f"{entry['hub']} is not on this machine", "snakemake fetches it, where there is a network"
    if not any(folder.rglob("*.safetensors")):
        return MISSING, f"{folder} has no safetensors weights", "pickled weights are never read: save it as safetensors"
    return OK, f"{entry.get('path') or entry['hub']}, {size(folder) / 1e9:.2f} GB of weights", ""


def files(folder):
    """The weight files of a model."""
    return [path for path in folder.rglob("*.safetensors") if path.is_file() and ".fp16." not in path.name]


def size(folder):
    """Bytes of a model's weights."""
    return sum(path.stat().st_size for path in files(folder))


def _sources(experiment):
    entries = [
        *experiment["samplings"].values(),
        *experiment["sensitivities"].values(),
        experiment["calibration"] or {},
    ]
    for entry in entries:
        texts = entry.get("texts") or []
        yield from [entry["prompts"]] if entry.get("prompts") else []
        yield from texts.values() if isinstance(texts, dict) else [texts] if isinstance(texts, str) else texts
    yield from filter(None, [(experiment["reference"] or {}).get("folder")])


def data(experiment):
    names = list(dict.fromkeys(map(str, _sources(experiment))))
    absent = [name for name in names if not (ROOT / name).exists()]
    yours = [name for name in absent if datasets.name_of(name) in datasets.YOURS]
    lost = [name for name in absent if datasets.name_of(name) is None]
    if yours:
        return MISSING, f"{yours[0]} is not there", datasets.YOURS[datasets.name_of(yours[0])].sentence
    if lost:
        return MISSING, f"{', '.join(lost)}: not there", "correct the path in the experiment"
    if absent:
        return NOTE, f"to be fetched: {', '.join(absent)}", "snakemake fetches them, where there is a network"
    return OK, ", ".join(names) or "none is read", ""


def weights(config, experiment):
    """Check the weights of the networks that score images: judge, classifier, Inception, and `extractors`."""
    judge, classifier = experiment["judge"]["model"], experiment["classifier"]
    places = {
        "judge": judge.removeprefix("local-dir:") if judge.startswith("local-dir:") else None,
        "classifier": classifier and classifier["path"],
        "inception": config["inception_weights"] if config["inception_weights"] != "download" else None,
    }
    networks = experiment["extractors"].items()
    places |= {name: None if entry["revision"] else entry["weights"] for name, entry in networks}
    absent = [f"{name} {path}" for name, path in places.items() if path and not (ROOT / path).exists()]
    if absent:
        return MISSING, f"{', '.join(absent)}: not there", "correct the path"
    remote = [] if judge.startswith("local-dir:") else [f"the judge {judge}"]
    remote += ["Inception"] if config["inception_weights"] == "download" else []
    remote += [f"{name} {entry['weights']}" for name, entry in networks if entry["revision"]]
    if remote:
        return NOTE, f"{' and '.join(remote)}: fetched where not cached", "run once where there is a network"
    return OK, ", ".join(f"{name} {path}" for name, path in places.items() if path), ""


def sizes(config, experiment):
    """Compare the memory request of a job that loads the largest model with the memory of this machine."""
    loaded = {}
    for name, entry in experiment["models"].items():
        if folder := location(entry):
            computing = BYTES.get(entry.get("dtype"), 4)
            sizes_bytes = (model_memory.loaded_bytes(path, path.stat().st_size, computing) for path in files(folder))
            loaded[name] = sum(sizes_bytes)
    if not loaded:
        return NOTE, "no model is on this machine yet", ""
    name, memory = max(loaded, key=loaded.get), hardware.memory_gb()
    needed_mb = model_memory.process_mb(loaded[name])
    on_gpu = " (of the machine; a GPU needs memory of its own)" if hardware.chosen_device(config) == "cuda" else ""
    needed = f"{name} takes {loaded[name] / 1e9:.2f} GB, a job about {needed_mb:,} MB{on_gpu}"
    if memory and needed_mb > 1000 * memory[0]:
        return NOTE, f"{needed}; this machine has {1000 * memory[0]:,.0f} MB", "run it on a larger machine or a cluster"
    return OK, needed, ""


def backends(experiment):
    """Check external solvers: libraries that need separate environments."""
    from quantwatt.config import methods

    entries = [method for method in experiment["methods"].values() if methods.is_external(method)]
    names = list(dict.fromkeys(entry["solver"]["name"] for entry in entries))
    absent = [name for name in names if not (ROOT / ".venvs" / name / "installed").exists()]
    if absent:
        return NOTE, f"{', '.join(absent)}: no environment", "make backends, or snakemake --sdm conda"
    return OK, ", ".join(names) or "all are quantwatt's", ""
