"""Read, check and complete the configuration: the one place that does.

`config.yaml` says which experiment runs and how this machine measures; `resources/experiments/NAME.yaml` holds the
grid of models, methods and samplings. Both are checked against the JSON schemas of `resources/schemas/` before any
job starts, and every default named there is filled in, so that a rule's slice of the configuration is complete.
Each solver, transform, format, allocation, family and metric has its own schema: a new default of one never changes
the entries of another.
"""

import difflib
import functools
import hashlib
import json
import math
import os
from pathlib import Path

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "resources" / "schemas"
EXPERIMENTS = ROOT / "resources" / "experiments"
LOCAL_JUDGE = "local-dir:"  # open_clip's word for a model in a folder
MACHINE = {"idle_w", "full_w"}  # of config.yaml's measuring
WHOLE_FILE_BYTES, EDGE_BYTES = 64_000_000, 1_000_000


class ConfigurationError(Exception):
    """A wrong entry of the configuration; the message is one sentence naming file, entry and key."""


def load_config(config, file="config.yaml"):
    """Check the workflow's own configuration and fill in its defaults.

    Args:
        config: the mapping Snakemake read (`config.yaml` and `--config`).
    Returns:
        a new, complete mapping.
    Raises:
        ConfigurationError: an unknown key or a wrong value.
    """
    complete = _complete(config, _schema("config"), file, "")
    weights, watts = complete["inception_weights"], complete["measuring"]
    if weights not in (None, "download") and not (ROOT / weights).is_file():
        raise ConfigurationError(
            f"{file}: inception_weights: '{weights}' does not exist; null uses the judge's features."
        )
    if watts["idle_w"] >= watts["full_w"]:
        raise ConfigurationError(
            f"{file}: measuring.idle_w: {watts['idle_w']} W idle is not below full_w, {watts['full_w']} W fully loaded."
        )
    return complete


def load_experiment(name):
    """Read `resources/experiments/NAME.yaml`, check it, and fill in every default.

    Returns:
        {"kind", "models", "methods", "baseline", "samplings", "calibration", "reference", "metrics", "cells"}; `kind`
        is "image" or "text"; `cells` is the explicit list of {"model", "method", "sampling"}, with "kind" where it is
        text.
    Raises:
        ConfigurationError: no such experiment, an unknown key, a wrong value, or an impossible combination.
    """
    path = EXPERIMENTS / f"{name}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in EXPERIMENTS.glob("*.yaml"))
        raise ConfigurationError(
            f"config.yaml: experiment: there is no '{name}' in resources/experiments{_nearest(name, known)}."
        )
    file = str(path.relative_to(ROOT))
    return check_experiment(read_yaml(path, file), file)


def check_experiment(raw, file):
    """`load_experiment` on an already parsed mapping; `file` names it in messages."""
    experiment = _complete(raw, _schema("experiment"), file, "")
    experiment["models"] = {
        name: _complete_plugin(entry, "families", "family", file, f"models.{name}")
        for name, entry in experiment["models"].items()
    }
    experiment["methods"] = {
        name: complete_method(entry or {}, file, f"methods.{name}") for name, entry in experiment["methods"].items()
    }
    kind = experiment["kind"] = _kind(experiment["models"], file)
    experiment["samplings"] = {
        name: _complete(entry, _schema(f"samplings/{kind}"), file, f"samplings.{name}")
        for name, entry in experiment["samplings"].items()
    }
    if experiment["calibration"] is not None:
        experiment["calibration"] = _complete(
            experiment["calibration"], _schema(f"calibrations/{kind}"), file, "calibration"
        )
    experiment["metrics"] = {
        name: _complete(
            entry or {}, _schema(f"metrics/{_plugin('metrics', name, file, 'metrics')}"), file, f"metrics.{name}"
        )
        for name, entry in experiment["metrics"].items()
    }
    _check_measuring(experiment["measuring"], file)
    _check_references(experiment, file)
    experiment["cells"] = [
        {"model": model, "method": method, "sampling": sampling} | ({"kind": kind} if kind == "text" else {})
        for model in experiment["models"]
        for method in experiment["methods"]
        for sampling in experiment["samplings"]
    ]
    return experiment


def _check_measuring(changes, file):
    """An experiment may change the protocol, not say what this machine draws."""
    for key in MACHINE.intersection(changes):
        raise ConfigurationError(f"{file}: measuring.{key}: the machine's own; set it in config.yaml.")
    _complete(changes, _schema("config")["properties"]["measuring"], file, "measuring")


def _kind(models, file):
    """What the models of an experiment are asked for, "image" or "text": their families' schemas say so."""
    kinds = {name: _schema(f"families/{model['family']}").get("x-kind", "image") for name, model in models.items()}
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


def complete_method(entry, file, where):
    """Complete one method; an entry without `weights` is an unquantized one."""
    method = _complete(entry, _schema("method"), file, where)
    if method["weights"] is None:
        for key in ("solver", "activations", "transforms"):
            if method[key]:
                raise ConfigurationError(
                    f"{file}: {where}.{key}: there is nothing to quantize with it, because {where}.weights is missing."
                )
        return method
    method["solver"] = _complete_plugin(method["solver"] or {"name": "rtn"}, "solvers", "name", file, f"{where}.solver")
    method["weights"] = _complete_plugin(method["weights"], "formats", "format", file, f"{where}.weights")
    method["transforms"] = [
        _complete_plugin(entry, "transforms", "name", file, f"{where}.transforms.{i}")
        for i, entry in enumerate(method["transforms"])
    ]
    method["allocation"] = _complete_plugin(method["allocation"], "allocations", "name", file, f"{where}.allocation")
    for pattern, changed in method["allocation"].get("overrides", {}).items():
        _complete_override(method, changed, file, f"{where}.allocation.overrides.{pattern}")
    _check_combination(method, file, where)
    if method["weights"].get("granularity") == "group" and method["weights"].get("group_size") is None:
        raise ConfigurationError(
            f"{file}: {where}.weights.group_size: missing, and granularity 'group' needs it (64 or 128 are usual)."
        )
    if method["weights"].get("granularity") != "group" and method["weights"].get("group_size") is not None:
        raise ConfigurationError(
            f"{file}: {where}.weights.group_size: only granularity 'group' has groups; set it or drop the key."
        )
    return method


def _complete_override(method, changed, file, where):
    """Fill in, from the method's own, what an override of some layers' formats does not say."""
    if "weights" in changed:
        weights = {**method["weights"], **changed["weights"]}
        changed["weights"] = _complete_plugin(weights, "formats", "format", file, f"{where}.weights")
    if changed.get("activations"):
        activations = {**(method["activations"] or {}), **changed["activations"]}
        schema = _schema("method")["properties"]["activations"]
        changed["activations"] = _complete(activations, schema, file, f"{where}.activations")


def _check_combination(method, file, where):
    """What a method's parts ask of one another."""
    solver, weights, activations = method["solver"], method["weights"], method["activations"]
    library = is_library(method)
    own = library or is_external(method)
    if library and solver["name"] != "rtn":
        raise ConfigurationError(
            f"{file}: {where}.solver.name: '{solver['name']}' cannot choose values for '{weights['format']}', a format "
            "that its library rounds itself; use rtn or drop the key."
        )
    if own and method["transforms"]:
        name = weights["format"] if library else solver["name"]
        raise ConfigurationError(f"{file}: {where}.transforms: '{name}' takes layers as they are; drop the key.")
    if library and activations:
        raise ConfigurationError(
            f"{file}: {where}.activations: format '{weights['format']}' decides on activations itself; drop the key."
        )
    if is_external(method):
        _check_external(solver["name"], weights, file, f"{where}.weights")
    names = [transform["name"] for transform in method["transforms"]]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{file}: {where}.transforms: each transform can be used once.")
    if "low-rank" in names and names[-1] != "low-rank":
        raise ConfigurationError(f"{file}: {where}.transforms: 'low-rank' splits what the others leave; put it last.")
    if activations and not activations["dynamic"] and activations["granularity"] != "tensor":
        raise ConfigurationError(
            f"{file}: {where}.activations.granularity: a static grid (dynamic: false) is one per tensor; set 'tensor'."
        )


def _check_external(name, weights, file, where):
    """The grids that GPTQ's libraries know."""
    if weights["format"] != "integer":
        raise ConfigurationError(
            f"{file}: {where}.format: '{name}' knows integer grids only, not '{weights['format']}'."
        )
    for key, refused, instead in (("granularity", "tensor", "channel or group"), ("zero_point", "float", "integer")):
        if weights[key] == refused:
            raise ConfigurationError(f"{file}: {where}.{key}: '{name}' has no '{refused}'; set {instead}.")
    if weights["symmetric"] and weights["narrow"]:
        raise ConfigurationError(f"{file}: {where}.narrow: '{name}' has no narrow symmetric grid; set false.")


def is_library(method):
    """Whether a library rounds, stores and computes a completed method's weights (its format's schema says so)."""
    return bool(method["weights"]) and _schema(f"formats/{method['weights']['format']}").get("x-library", False)


def is_external(method):
    """Whether a completed method's solver runs in an environment of its own (its schema says so)."""
    return bool(method["solver"]) and _schema(f"solvers/{method['solver']['name']}").get("x-external", False)


def _check_references(experiment, file):
    """Names that entries use of one another must exist, and so must the files they name."""
    methods = experiment["methods"]
    if experiment["baseline"] not in methods:
        raise ConfigurationError(
            f"{file}: baseline: there is no method '{experiment['baseline']}'"
            f"{_nearest(experiment['baseline'], methods)}."
        )
    if methods[experiment["baseline"]]["weights"] is not None:
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
    sources = {f"samplings.{name}": entry for name, entry in experiment["samplings"].items()}
    if experiment["calibration"]:
        sources["calibration"] = experiment["calibration"]
    files = _sources(sources, experiment["models"], file)
    for name in experiment["metrics"]:
        if _schema(f"metrics/{name}").get("x-kind", "image") != experiment["kind"]:
            other = {"image": "text models", "text": "images"}[experiment["kind"]]
            raise ConfigurationError(f"{file}: metrics.{name}: a metric of {other}, and this experiment has none.")
    for name, model in experiment["models"].items():
        if model.get("path"):
            files[f"models.{name}.path"] = model["path"]
    if reference and reference.get("folder"):
        files["reference.folder"] = reference["folder"]
    if experiment["judge"]["model"].startswith(LOCAL_JUDGE):
        files["judge.model"] = experiment["judge"]["model"].removeprefix(LOCAL_JUDGE)
    for entry, path in files.items():
        if not (ROOT / path).exists() or (entry.endswith((".prompts", ".texts")) and (ROOT / path).is_dir()):
            siblings = [str(Path(path).parent / p.name) for p in (ROOT / path).parent.glob("*")]
            hint = _nearest(path, siblings)
            if ".texts" in entry and not hint:
                hint = f"; if it is a file of your own, put it there ({file} says what it holds)"
            raise ConfigurationError(f"{file}: {entry}: '{path}' does not exist{hint}.")
    for name, entry in experiment["samplings"].items() if experiment["kind"] == "image" else ():
        lines = len((ROOT / entry["prompts"]).read_text().splitlines())
        if lines < entry["images"]:
            raise ConfigurationError(
                f"{file}: samplings.{name}.images: {entry['images']} images need as many prompts, and "
                f"{entry['prompts']} has {lines}."
            )


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
            raise ConfigurationError(f"{file}: {where}.texts: there is no model '{name}'{_nearest(name, models)}.")
        files |= {f"{where}.texts.{name}": path for name, path in entry["texts"].items()}
    return files


def needs_calibration(method):
    """Whether a completed method's solver, a transform (their schemas say so) or its activations need calibration."""
    overrides = method["allocation"].get("overrides", {}) if method["weights"] else {}
    inputs = [method["activations"], *(changed.get("activations") for changed in overrides.values())]
    if any(activations and not activations["dynamic"] for activations in inputs):
        return True
    plugins = [f"transforms/{transform['name']}" for transform in method["transforms"]]
    if method["solver"] and not is_external(method):
        plugins.append(f"solvers/{method['solver']['name']}")
    return any(_schema(plugin).get("x-needs-calibration", False) for plugin in plugins)


def lookup(mapping, name, what, file):
    """`mapping[name]`, or a ConfigurationError with the nearest spelling."""
    if name not in mapping:
        raise ConfigurationError(f"{file}: there is no {what} '{name}'{_nearest(name, mapping)}.")
    return mapping[name]


def read_yaml(path, file):
    """Parse a YAML file, refusing a key that stands twice (YAML itself would silently keep the last).

    Raises:
        ConfigurationError: not YAML, not a mapping, or a duplicate key.
    """
    try:
        value = yaml.load(Path(path).read_text(), Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise ConfigurationError(f"{file}:{line} {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{file}: expected a mapping of keys to values.")
    return value


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


@functools.cache
def _schema(name):
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())


def _plugin(kind, name, file, where):
    """`name` if `resources/schemas/KIND/NAME.schema.json` exists."""
    known = sorted(p.name.removesuffix(".schema.json") for p in (SCHEMAS / kind).glob("*.schema.json"))
    if name not in known:
        raise ConfigurationError(
            f"{file}: {where}: '{name}' is not known (known: {', '.join(known)}){_nearest(name, known)}."
        )
    return name


def _complete_plugin(entry, kind, key, file, where):
    """Complete an entry with the schema that its `key` names."""
    if not isinstance(entry, dict) or key not in entry:
        raise ConfigurationError(f"{file}: {where}.{key}: missing.")
    name = _plugin(kind, entry[key], file, f"{where}.{key}")
    return _complete(entry, _schema(f"{kind}/{name}"), file, where)


def _complete(value, schema, file, where):
    """Check `value` and return a copy with the schema's defaults filled in."""
    for key, number in _numbers(value):
        if not math.isfinite(number):
            raise ConfigurationError(f"{file}: {'.'.join(filter(None, [where, key]))}: {number} is not a number.")
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(value), key=lambda e: (len(e.absolute_path), str(e.absolute_path)))
    if errors:
        raise ConfigurationError(_sentence(errors[0], file, where))
    return _with_defaults(json.loads(json.dumps(value)), schema)


def _numbers(value, path=""):
    """(path, number) of every number with a decimal point in nested mappings and lists."""
    if isinstance(value, float):
        yield path, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in pairs:
        yield from _numbers(part, f"{path}.{key}" if path else str(key))


def _with_defaults(value, schema):
    if isinstance(value, float) and value.is_integer():
        types = schema.get("type", [])
        if "integer" in types or int(value) in [v for v in schema.get("enum", ()) if type(v) is int]:
            return int(value)  # JSON knows one kind of number: 4.0 is a whole one
    if not isinstance(value, dict):
        return value
    for key, sub in schema.get("properties", {}).items():
        if key not in value and "default" in sub:
            value[key] = json.loads(json.dumps(sub["default"]))
        if key in value:
            value[key] = _with_defaults(value[key], sub)
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        for key in value.keys() - schema.get("properties", {}).keys():
            value[key] = _with_defaults(value[key], extra)
    return value


def _sentence(error, file, where):
    path = ".".join([where, *map(str, error.absolute_path)] if where else map(str, error.absolute_path))
    entry = f"{file}: {path}" if path else file
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = sorted(error.instance.keys() - known.keys())[0]
        return f"{entry}: unknown key '{unknown}'{_nearest(unknown, known)}."
    if error.validator in ("oneOf", "anyOf", "not") and "x-rule" in error.schema:
        return f"{entry}: {error.schema['x-rule']}."
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{entry}: the key '{missing}' is missing."
    if error.validator == "enum":
        allowed = ", ".join(str(v) for v in error.validator_value)
        return f"{entry}: {error.instance!r} is none of {allowed}{_nearest(error.instance, error.validator_value)}."
    if error.validator == "type":
        expected = (
            error.validator_value if isinstance(error.validator_value, str) else " or ".join(error.validator_value)
        )
        return f"{entry}: expected {expected}, got {error.instance!r}."
    hint = error.schema.get("description") if isinstance(error.schema, dict) else None
    return f"{entry}: {error.message}{f' ({hint})' if hint else ''}."


def _nearest(name, known):
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'" if match else ""


def resolve_device(device):
    """ "auto" as "cuda" where an NVIDIA driver is loaded, else "cpu"; without importing torch."""
    if device != "auto":
        return device
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def resolve_meter(meter, device):
    """ "auto" as "nvml" on cuda, "rapl" where the counters are readable, else "estimate"."""
    if meter != "auto":
        return meter
    if device == "cuda":
        return "nvml"
    counters = Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj")
    return "rapl" if any(os.access(counter, os.R_OK) for counter in counters) else "estimate"


def fingerprint(path):
    """A hash of a file or of all files of a folder, so that other content under the same path is another input.

    Files are named by content and not by date: a checkout or a touch reruns nothing. Of a file over 64 MB only its
    size, its first and its last megabyte are read, which holds planning to milliseconds.

    Args:
        path: relative to the project.
    Returns:
        hex string.
    """
    digest = hashlib.sha256()
    top = ROOT / path
    for path in [top] if top.is_file() else sorted(p for p in top.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(top)} {size}\n".encode())
        with path.open("rb") as file:
            if size <= WHOLE_FILE_BYTES:
                digest.update(file.read())
            else:
                digest.update(file.read(EDGE_BYTES))
                file.seek(-EDGE_BYTES, os.SEEK_END)
                digest.update(file.read())
    return digest.hexdigest()
