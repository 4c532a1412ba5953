"""Read, check and complete the configuration: the one place that does.

`config.yaml` says which experiment runs and how this machine measures; `resources/experiments/NAME.yaml` holds the
grid of models, methods and samplings. Both are checked against the JSON schemas of `resources/schemas/` before any
job starts, and every default named there is filled in, so that a rule's slice of the configuration is complete.
Each solver, transform, format, allocation, family and metric has its own schema: a new default of one never changes
the entries of another.
"""

import difflib
import hashlib
import json
import math
import os
import unicodedata
from pathlib import Path

import jsonschema
import yaml

from quantwatt import datasets, manifest
from quantwatt.allocation import TAKING_APART
from quantwatt.allocations import mixed
from quantwatt.methods import SCHEMAS, is_external, is_library, is_mixed, is_quantized
from quantwatt.methods import schema as _schema

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "resources" / "experiments"
EMBEDDED = Path("resources/models")  # ships with quantwatt
LOCAL_JUDGE = "local-dir:"  # open_clip's word for a model in a folder
MACHINE = {"idle_w", "full_w"}  # of config.yaml's measuring
TRIED_TRANSFORMS = ("bos", *TAKING_APART)  # that a sensitivity may have: they leave a layer's values to rounding
WHOLE_FILE_BYTES, EDGE_BYTES = 64_000_000, 1_000_000
DEEPEST, MOST_PARTS = 20, 100_000  # nested entries of a file, and all of them
LONGEST_KEY, LONGEST_SHOWN = 100, 80  # characters; names are folders of the results
BREAKS = str.maketrans("", "", "\t\n")  # that a text may have


class ConfigurationError(Exception):
    """A wrong entry of the configuration; the message is one sentence naming file, entry and key."""

    def __init__(self, sentence):
        line = "".join(character if character.isprintable() else " " for character in sentence)
        super().__init__(manifest.without_credentials(line))


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
        "kind" where it is text. The allocation of a mixed method also holds its "candidates", {name: formats}.
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
    experiment["sensitivities"] = {
        name: _complete_sensitivity(entry, file, f"sensitivities.{name}")
        for name, entry in experiment["sensitivities"].items()
    }
    for name, method in experiment["methods"].items():
        if is_mixed(method):
            _check_mixed(method, experiment["sensitivities"], file, f"methods.{name}")
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
    """Complete one method; an entry without `weights` is an unquantized one, unless its allocation is mixed."""
    method = _complete(entry, _schema("method"), file, where)
    if not is_quantized(method):
        for key in ("solver", "activations", "transforms"):
            if method[key]:
                raise ConfigurationError(
                    f"{file}: {where}.{key}: there is nothing to quantize with it, because {where}.weights is missing."
                )
        return method
    method["solver"] = _complete_plugin(method["solver"] or {"name": "rtn"}, "solvers", "name", file, f"{where}.solver")
    method["weights"] = _complete_weights(method["weights"], file, f"{where}.weights")
    method["transforms"] = _complete_transforms(method["transforms"], file, f"{where}.transforms")
    method["allocation"] = _complete_plugin(method["allocation"], "allocations", "name", file, f"{where}.allocation")
    for pattern, changed in method["allocation"].get("overrides", {}).items():
        _complete_override(method, changed, file, f"{where}.allocation.overrides.{pattern}")
    _check_combination(method, file, where)
    return method


def _complete_transforms(entries, file, where):
    return [_complete_plugin(entry, "transforms", "name", file, f"{where}.{i}") for i, entry in enumerate(entries)]


def _complete_weights(weights, file, where):
    """Complete a weight format; None is 16 bit."""
    if weights is None:
        return None
    weights = _complete_plugin(weights, "formats", "format", file, where)
    if weights.get("granularity") == "group" and weights.get("group_size") is None:
        raise ConfigurationError(
            f"{file}: {where}.group_size: missing, and granularity 'group' needs it (64 or 128 are usual)."
        )
    if weights.get("granularity") != "group" and weights.get("group_size") is not None:
        raise ConfigurationError(
            f"{file}: {where}.group_size: only granularity 'group' has groups; set it or drop the key."
        )
    return weights


def _complete_sensitivity(entry, file, where):
    """Complete what is tried on each layer alone."""
    entry = _complete(entry, _schema("sensitivity"), file, where)
    for name, candidate in entry["candidates"].items():
        place = f"{where}.candidates.{name}"
        formats = {"weights": None, "activations": None} | candidate
        if formats["activations"]:
            settings = _schema("method")["properties"]["activations"]
            formats["activations"] = _complete(formats["activations"], settings, file, f"{place}.activations")
        formats["weights"] = _complete_weights(formats["weights"], file, f"{place}.weights")
        if formats["weights"] and _schema(f"formats/{formats['weights']['format']}").get("x-library", False):
            raise ConfigurationError(
                f"{file}: {place}.weights.format: '{formats['weights']['format']}' is stored by its library, and a "
                "candidate is rounded here; use integer, nf4 or fp4."
            )
        _check_static(formats["activations"], file, f"{place}.activations")
        entry["candidates"][name] = {side: formats[side] for side in candidate}
    entry["transforms"] = _complete_transforms(entry["transforms"], file, f"{where}.transforms")
    for i, transform in enumerate(entry["transforms"]):
        if transform["name"] not in TRIED_TRANSFORMS:
            raise ConfigurationError(
                f"{file}: {where}.transforms.{i}.name: '{transform['name']}' belongs to a method; layers are tried "
                f"with {', '.join(TRIED_TRANSFORMS)} only."
            )
    return entry


def _check_mixed(method, sensitivities, file, where):
    """Names that the programs of a mixed method use; adds the candidates that they name."""
    allocation, where = method["allocation"], f"{where}.allocation"
    try:
        sensitivity = lookup(sensitivities, allocation["sensitivity"], "entry of sensitivities", file)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {where}.sensitivity: {str(error).removeprefix(f'{file}: ')}") from error
    candidates, decided = {}, {}
    for i, program in enumerate(allocation["programs"]):
        place = f"{where}.programs.{i}"
        names = mixed.names_of(program)
        for name in names:
            if name not in sensitivity["candidates"]:
                raise ConfigurationError(
                    f"{file}: {place}.candidates: '{allocation['sensitivity']}' tries no '{name}'"
                    f"{_nearest(name, sensitivity['candidates'])}."
                )
            candidates[name] = sensitivity["candidates"][name]
        sides = mixed.sides(program, candidates)
        for name in names:
            if unsaid := [side for side in sides if side not in candidates[name]]:
                raise ConfigurationError(
                    f"{file}: {place}.candidates: '{name}' says nothing of {' and '.join(unsaid)}, and others do; "
                    "candidates of one program set the same (null: 16 bit)."
                )
        for side in sides:
            if side in decided:
                raise ConfigurationError(
                    f"{file}: {place}.candidates: program {decided[side]} decides on {side} already."
                )
            decided[side] = i
        for name in names:
            formats = candidates[name]
            if len(sides) == 2 and formats["weights"] is None and formats["activations"]:
                raise ConfigurationError(
                    f"{file}: {place}.candidates: '{name}' has 16-bit weights, and such layers keep 16-bit activations."
                )
        _check_program(program, sides, file, place)
        metrics = program["objective"].values() if isinstance(program["objective"], dict) else [program["objective"]]
        if unscored := [metric for metric in metrics if metric not in sensitivity["metrics"]]:
            raise ConfigurationError(
                f"{file}: {place}.objective: '{unscored[0]}' is not among the metrics of '{allocation['sensitivity']}'."
            )
    for side in decided:
        if method[side]:
            raise ConfigurationError(
                f"{file}: {where.removesuffix('.allocation')}.{side}: the programs of its allocation decide on {side}; "
                "drop the key."
            )
    if "weights" not in decided and method["weights"] is None:
        raise ConfigurationError(
            f"{file}: {where}.programs: none decides on weights, and layers of 16-bit weights keep 16-bit activations; "
            "give the method weights, or add a program."
        )
    _check_same_transforms(method, sensitivity, allocation["sensitivity"], file, f"{where}.sensitivity")
    allocation["candidates"] = candidates


def _check_same_transforms(method, sensitivity, name, file, where):
    """What layers were tried with must be the method's, and what a sensitivity may have must be in both alike."""
    mine, tried = ({transform["name"] for transform in entry["transforms"]} for entry in (method, sensitivity))
    if lacking := sorted(tried - mine):
        raise ConfigurationError(
            f"{file}: {where}: '{name}' tries layers with '{lacking[0]}', which this method does not have among its "
            "transforms."
        )
    if "bos" in mine - tried:
        raise ConfigurationError(
            f"{file}: {where}: '{name}' tries layers whose first token is rounded, and 'bos' here leaves it in 16 bit; "
            "give it that transform."
        )
    if apart := sorted((mine - tried).intersection(TAKING_APART)):
        raise ConfigurationError(
            f"{file}: {where}: '{name}' tries whole layers that '{apart[0]}' takes apart here; give it that transform."
        )


def _check_program(program, sides, file, where):
    """What a program's budget, objective and sweep ask of one another."""
    bits = "bits" in program["budget"]
    if bits and len(sides) > 1:
        raise ConfigurationError(
            f"{file}: {where}.budget.bits: these candidates set weights and activations, whose bits are two budgets; "
            "make two programs, or budget megabytes, milliseconds or joules."
        )
    if not bits and "weights" not in sides:
        raise ConfigurationError(
            f"{file}: {where}.budget: these candidates set activations alone, which take nothing by themselves; "
            "give it in bits, or let the candidates set weights, too."
        )
    if isinstance(program["objective"], dict) and not bits:
        raise ConfigurationError(
            f"{file}: {where}.objective: a metric for each group splits a budget in bits; with another name one metric."
        )
    if program["protect"] and (not bits or sides != ["activations"]):
        raise ConfigurationError(
            f"{file}: {where}.protect: layers keep 16-bit activations in a program of activations and bits only."
        )
    if program["split"] and not isinstance(program["objective"], dict):
        raise ConfigurationError(f"{file}: {where}.split: one objective does not split the budget; drop the key.")
    if program["split"] and program["split"]["low"] > program["split"]["high"]:
        raise ConfigurationError(f"{file}: {where}.split.low: {program['split']['low']} is above high.")


def has_several_choices(method):
    """Whether images decide between choices of a mixed method's programs."""
    return any(mixed.is_swept(program) for program in method["allocation"]["programs"])


def _complete_override(method, changed, file, where):
    """Fill in, from the method's own, what an override of some layers' formats does not say."""
    if "weights" in changed:
        changed["weights"] = _complete_weights({**method["weights"], **changed["weights"]}, file, f"{where}.weights")
    if changed.get("activations"):
        activations = {**(method["activations"] or {}), **changed["activations"]}
        schema = _schema("method")["properties"]["activations"]
        changed["activations"] = _complete(activations, schema, file, f"{where}.activations")


def _check_combination(method, file, where):
    """What a method's parts ask of one another."""
    solver, weights, activations = method["solver"], method["weights"], method["activations"]
    library = is_library(method)
    own = library or is_external(method)
    if is_mixed(method) and own:
        name = weights["format"] if library else solver["name"]
        raise ConfigurationError(f"{file}: {where}.allocation.name: '{name}' knows uniform allocations only.")
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
    _check_static(activations, file, f"{where}.activations")


def _check_static(activations, file, where):
    if activations and not activations["dynamic"] and activations["granularity"] != "tensor":
        raise ConfigurationError(
            f"{file}: {where}.granularity: a static grid (dynamic: false) is one per tensor; set 'tensor'."
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


def _check_references(experiment, file):
    """Names that entries use of one another must exist, and so must the files they name."""
    methods = experiment["methods"]
    if experiment["baseline"] not in methods:
        raise ConfigurationError(
            f"{file}: baseline: there is no method '{experiment['baseline']}'"
            f"{_nearest(experiment['baseline'], methods)}."
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
            hint = _nearest(path, siblings)
            if ".texts" in entry and not hint:
                hint = f"; if it is a file of your own, put it there ({file} says what it holds)"
            raise ConfigurationError(f"{file}: {entry}: '{path}' does not exist{hint}.")
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
            raise ConfigurationError(f"{file}: {where}.texts: there is no model '{name}'{_nearest(name, models)}.")
        files |= {f"{where}.texts.{name}": path for name, path in entry["texts"].items()}
    return files


def needs_calibration(method):
    """Whether a completed method's solver, a transform (their schemas say so) or its activations need calibration."""
    changed = [
        *method["allocation"].get("overrides", {}).values(),
        *method["allocation"].get("candidates", {}).values(),
    ]
    inputs = [method["activations"], *(formats.get("activations") for formats in changed)]
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
        ConfigurationError: not readable, not YAML, not a mapping, or a duplicate key.
    """
    try:
        value = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigurationError(f"{file}:{f' line {mark.line + 1}:' if mark else ''} {error.problem}.") from error
    except yaml.reader.ReaderError as error:
        raise ConfigurationError(
            f"{file}: the character {chr(error.character)!a} at place {error.position} cannot stand in YAML."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: not a text in UTF-8 (byte {error.start}).") from error
    except RecursionError as error:
        raise ConfigurationError(f"{file}: its entries are nested too deeply.") from error
    except (ValueError, LookupError, AttributeError) as error:  # PyYAML's, of a value that its tag does not fit
        raise ConfigurationError(f"{file}: a date, number or tag in it is none.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{file}: expected a mapping of keys to values.")
    return value


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


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
    _check_parts(value, file, where)
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(validator.iter_errors(value), key=lambda e: (len(e.absolute_path), str(e.absolute_path)))
    if errors:
        raise ConfigurationError(_sentence(errors[0], file, where))
    return _with_defaults(json.loads(json.dumps(value)), schema)


def _check_parts(value, file, where):
    """Refuse what YAML can say and JSON, a path or a seed cannot hold, and what its aliases nest without end."""
    pending, count = [(where, value)], 0
    while pending:
        (path, part), count = pending.pop(), count + 1
        entry = f"{file}: {path}" if path else file
        if count > MOST_PARTS or path.count(".") > DEEPEST:
            raise ConfigurationError(f"{file}: its entries are nested too deeply, or too many.")
        if isinstance(part, dict):
            for key in part:
                if not isinstance(key, str) or not key.isprintable() or len(key) > LONGEST_KEY:
                    raise ConfigurationError(f"{entry}: the key {_shown(key)} is not a word; quote or rename it.")
        elif isinstance(part, str):
            if any(unicodedata.category(character) in ("Cc", "Cs") for character in part.translate(BREAKS)):
                raise ConfigurationError(f"{entry}: {_shown(part)} holds a character that is no text.")
        elif isinstance(part, float) and not math.isfinite(part):
            raise ConfigurationError(f"{entry}: {part} is not a number.")
        elif isinstance(part, int) and abs(part) >= 2**63:
            raise ConfigurationError(f"{entry}: the number has more than 64 bits.")
        elif not isinstance(part, list | int | float | None):
            raise ConfigurationError(f"{entry}: {_shown(part)} is neither text nor number; put it in quotes.")
        pairs = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        pending += [(f"{path}.{key}" if path else str(key), below) for key, below in pairs]


def _with_defaults(value, schema):
    if isinstance(value, float) and value.is_integer():
        types = schema.get("type", [])
        if "integer" in types or int(value) in [v for v in schema.get("enum", ()) if type(v) is int]:
            return int(value)  # JSON knows one kind of number: 4.0 is a whole one
    if isinstance(value, list):
        return [_with_defaults(part, schema["items"]) for part in value] if "items" in schema else value
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
        hint = _nearest(error.instance, error.validator_value)
        return f"{entry}: {_shown(error.instance)} is none of {allowed}{hint}."
    if error.validator == "type":
        expected = (
            error.validator_value if isinstance(error.validator_value, str) else " or ".join(error.validator_value)
        )
        return f"{entry}: expected {expected}, got {_shown(error.instance)}."
    hint = error.schema.get("description") if isinstance(error.schema, dict) else None
    message = error.message.replace(repr(error.instance), _shown(error.instance))
    return f"{entry}: {message}{f' ({hint})' if hint else ''}."


def _shown(value):
    """A value as a message shows it: cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


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


def evaluations(models):
    """What the embedded models among an experiment's were found to be worth before anything is quantized.

    Args:
        models: {name: settings}.
    Returns:
        list of paths relative to the project, each once: evaluation.json for tiny-sd3, which shares it with the judge,
        evaluation-NAME.json for others.
    """
    found = []
    for settings in models.values():
        path = Path(settings.get("path") or "")
        if path.parent == EMBEDDED:
            name = "evaluation.json" if path.name == "tiny-sd3" else f"evaluation-{path.name}.json"
            found.append(str(EMBEDDED / name))
    return [path for path in dict.fromkeys(found) if (ROOT / path).exists()]


def listing(folder):
    """A hash of the names and sizes of all files in a folder: of a million, whose content would take too long.

    Args:
        folder: relative to the project.
    Returns:
        hex string.
    """
    digest, top = hashlib.sha256(), ROOT / folder
    for parent, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            digest.update(f"{os.path.relpath(path, top)} {os.path.getsize(path)}\n".encode())
    return digest.hexdigest()


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
