"""A checked configuration on one device, which resolves a job's wildcards to entries, slices, plugins and paths.

Wildcards are plain mappings, {"model": NAME, ...}: this module does not need Snakemake.
"""

import functools
from collections.abc import Mapping
from typing import Any

from quantwatt.artifacts import image_parts, instructions, layout
from quantwatt.artifacts.manifest import canonical_json
from quantwatt.config import limits, methods, metric_entries, protocols, slices, targets
from quantwatt.config.experiment import for_model
from quantwatt.config.policy_file import load_policy
from quantwatt.config.schemas import ConfigurationError, lookup
from quantwatt.data import prompts
from quantwatt.jobs import dependencies
from quantwatt.jobs.fingerprints import ROOT

WITH_TEXTS = ("sampling", "calibration", "sensitivity")  # entries that name a file of prompts or texts


class Plan:
    """A checked configuration and experiment, on one device.

    Args:
        config, experiment: complete.
        device: "cpu" or "cuda".
        meter: as resolved for this machine.
        kernels: {format of weights: names of the kernels that may compute it on the device}.
    """

    def __init__(
        self,
        config: dict[str, Any],
        experiment: dict[str, Any],
        device: str,
        meter: str,
        kernels: Mapping[str, list[str]],
    ) -> None:
        self.config, self.experiment = config, experiment
        self.device, self.meter, self.kernels = device, meter, kernels
        self.results = f"{config['results']}/{config['experiment']}"
        self.file = f"resources/experiments/{config['experiment']}.yaml"  # for messages
        self.baseline = experiment["baseline"]
        self.outputs = "predictions" if experiment["kind"] == "text" else "images"  # of the models
        measuring = config["measuring"] | experiment["measuring"] | {"meter": meter}
        self.measured = {}  # names of the samplings and methods that are measured
        for kind in ("samplings", "methods"):
            chosen = measuring.pop(kind)
            self.measured[kind] = set(experiment[kind] if chosen is None else chosen)
        self.measured["methods"] |= {self.baseline} if self.measured["methods"] else set()
        self.measuring = measuring
        self.parts = {  # image sets that several jobs generate: {sampling: ranges of images}
            name: parts
            for name, sampling in experiment["samplings"].items()
            if self.outputs == "images" and len(parts := image_parts.parts(sampling, config["images_per_job"])) > 1
        }
        self.whole_sets = [name for name in experiment["samplings"] if name not in self.parts]

    # Entries and their slices

    def entry(self, kind: str, names: dict[str, str]) -> dict[str, Any]:
        """The entry that a job's wildcards name.

        Args:
            kind: the `entry` of a `Slice`; samplings and the calibration have the texts of the wildcards' model.
            names: the wildcards.
        Raises:
            ConfigurationError: there is no such entry; suggests the nearest spelling.
        """
        return _ENTRIES[kind](self, names)

    def _named(self, kind, name):
        return targets.entry(self.experiment, kind, name, self.config["experiment"])

    def _given(self, kind):
        if self.experiment[kind] is None:
            raise ConfigurationError(f"{self.file}: {kind}: missing, and what is asked for needs it.")
        return self.experiment[kind]

    @functools.cached_property
    def components(self) -> dict[tuple[str, str], dict[str, Any]]:
        """{(component, hash): what quantizes it} of all methods; methods that quantize it equally share its weights."""
        entries = self.experiment["methods"].values()
        found = [(name, methods.of_component(m, name)) for m in entries for name in m.get(methods.COMPONENTS, ())]
        return {(name, methods.component_hash(entry)): entry for name, entry in found}

    def _component(self, names):
        if found := self.components.get((names["component"], names["hash"])):
            return found
        raise ConfigurationError(f"{self.file}: no method quantizes {names['component']} as {names['hash']}.")

    def _quantized(self, names):
        """What a job quantizes: a component, or a method's denoiser."""
        return self.entry("component" if "hash" in names else "method", names)

    def _sensitivity(self, names):
        """The sensitivity that a wildcard names, or that the wildcards' method uses."""
        if "sensitivity" in names:
            return self._named("sensitivity", names["sensitivity"])
        chosen = self.entry("method", names)["allocation"].get("sensitivity")
        if chosen is None:
            raise ConfigurationError(f"{self.file}: methods.{names['method']}: it chooses by no sensitivity.")
        return self._named("sensitivity", chosen)

    def _extractor(self, names):
        known = {key: self.experiment[key] for key in ("judge", "classifier")}
        known |= {"inception": {"weights": self.config["inception_weights"]}, **self.experiment["extractors"]}
        return lookup(known, names["extractor"], "extractor", self.file)

    def _grid(self, *settings):
        """The cells, their baseline and metrics, and further keys of the experiment."""
        grid = {key: self.experiment[key] for key in ("cells", "baseline", *settings)}
        return grid | {"metrics": list(self.experiment["metrics"])}

    def slice(self, rule: str, parameter: str, names: dict[str, str]) -> str:
        """One of a rule's parameters in READS for one job, a canonical JSON string."""
        part = slices.READS[rule][parameter]
        return part.of(self.entry(part.entry, names))

    def is_measured(self, names: dict[str, str]) -> bool:
        """Whether `measuring` asks for the cell that wildcards name."""
        return names["sampling"] in self.measured["samplings"] and names["method"] in self.measured["methods"]

    def computed_by(self, names: dict[str, str]) -> list[str]:
        """The images or predictions of a cell that is not measured: they record what has computed them."""
        return [] if self.is_measured(names) else [self.path(self.outputs, names)]

    def texts(self, rule: str, names: dict[str, str]) -> str:
        """The file of prompts or texts that a rule's sampling, calibration or sensitivity names."""
        kind = next(part.entry for part in slices.READS[rule].values() if part.entry in WITH_TEXTS)
        entry = self.entry(kind, names)
        return entry.get("prompts") or entry["texts"]

    def prompts(self, rule: str, names: dict[str, str]) -> list[str]:
        """The file of prompts that a rule's entry names, and the input pictures that the file names."""
        path = self.texts(rule, names)
        return [path, *(_pictures(path) if self.outputs == "images" else [])]

    def python(self, names: dict[str, str]) -> str:
        """The interpreter of the jobs that load a method's checkpoint."""
        return methods.python_of(self.entry("method", names))

    @functools.cached_property
    def foreign(self) -> list[str]:
        """Names of the methods whose checkpoint others have quantized."""
        return [name for name, method in self.experiment["methods"].items() if methods.is_foreign(method)]

    # Plugins and code

    def code(self, rule: str, names: dict[str, str]) -> str:
        """A hash of a job's code: its script, the local modules it imports, and the metric schemas it shows."""
        words = canonical_json(metric_entries.words()) if rule in slices.SHOWING_METRICS else ""
        return dependencies.digest(slices.script(rule), tuple(self.plugins(rule, names)), words)

    def plugins(self, rule: str, names: dict[str, str]) -> list[str]:
        """The plugins that a job loads, as modules: "solvers/gptq"."""
        return [f"{kind}/{name}" for kind in slices.PLUGINS.get(rule, ()) for name in _LOADED[kind](self, names)]

    def _caches(self, names):
        cache = self.entry("method", names).get("cache") if "method" in names else None
        return [cache["name"]] if cache else []

    def _formats(self, names):
        """The formats that a method's layers may have, or that a sensitivity tries."""
        if "method" in names or "hash" in names:
            networks = methods.quantizing(self._quantized(names))
            entries = [entry for network in networks for entry in methods.with_formats(network)]
        else:
            entries = self.entry("sensitivity", names)["candidates"].values()
        return methods.formats_of(entries)

    def _loaders(self, names):
        method = self.entry("method", names) if "method" in names else {}
        return [method[methods.FOREIGN]["loader"]] if methods.is_foreign(method) else []

    def _solvers(self, names):
        solver = self._quantized(names)["solver"]
        return [solver["name"]] if solver else []

    def _allocations(self, names):
        method = self._quantized(names)
        return [method["allocation"]["name"]] if methods.quantizes_denoiser(method) else []

    def _meters(self):
        """The meter, the secondary meter of a GPU's meter, and the fallback for an unreadable meter."""
        return list(dict.fromkeys([self.meter, "none", *(["rapl"] if self.meter in ("nvml", "amdsmi") else [])]))

    # Files

    def path(self, file: str, names: dict[str, str]) -> str:
        """The path of a file of `layout.FILES`."""
        return str(layout.path(self.results, file, names))

    def pattern(self, file: str, **names: str) -> str:
        """The path of a file of `layout.FILES`; missing names stay wildcards."""
        return layout.pattern(self.results, file, names)

    def log(self, rule: str) -> str:
        """The pattern of a rule's log."""
        return f"{self.results}/logs/{layout.JOBS[rule]}.log"

    def benchmark(self, rule: str) -> str:
        """The pattern of the file with a rule's time and memory."""
        return f"{self.results}/benchmarks/{layout.JOBS[rule]}.tsv"

    def of_cells(self, file: str, **names: str) -> list[str]:
        """A file of every cell of the experiment: an explicit list, never a glob."""
        return [self.path(file, names | cell) for cell in self.experiment["cells"]]

    @functools.cached_property
    def weights_of(self) -> dict[str, tuple[str, str]]:
        """{method whose checkpoint is joined: (file, method) of the checkpoint whose denoiser it shares}.

        Joined are those of methods with a cache, steps or components of their own. The denoiser is that of the first
        method that quantizes it alike and is not joined. Where there is none, the denoiser of the first of those that
        quantize it alike is quantized once, in a folder of its own.
        """
        entries, made = self.experiment["methods"], {}
        for name, method in sorted(entries.items(), key=lambda item: methods.is_joined(item[1])):
            if methods.is_foreign(method):
                continue
            file = "shared" if methods.is_joined(method) else "checkpoint"
            made.setdefault(canonical_json(methods.of_denoiser(method)), (file, name))
        return {
            name: made[canonical_json(methods.of_denoiser(method))]
            for name, method in entries.items()
            if methods.is_joined(method) and not methods.is_foreign(method)
        }

    @functools.cached_property
    def cell_files(self) -> list[str]:
        """The files about cells that the tables read."""
        scores = [path for metric in self.experiment["metrics"] for path in self.of_cells("score", metric=metric)]
        return [path for file in ("checkpoint", self.outputs, "measurement") for path in self.of_cells(file)] + scores

    @functools.cached_property
    def policy(self) -> dict[str, Any]:
        """The policy of the gate, complete.

        Raises:
            ConfigurationError: config.yaml names none, or a wrong one.
        """
        if self.config["gate"] is None:
            raise ConfigurationError(targets.NEEDS["gate"])
        return load_policy(ROOT / self.config["gate"], self.config["gate"])

    @property
    def decided(self) -> list[str]:
        """The verdicts that the configuration asks for beside the report: of the gate, of a comparison."""
        asked = {"gate": "gate", "baseline_results": "comparison"}
        return [self.pattern(file) for key, file in asked.items() if self.config[key]]

    @functools.cached_property
    def sensitivities(self) -> list[dict[str, str]]:
        """[{"model", "sensitivity"}] of all sensitivities that a mixed method uses."""
        mixed_methods = [method for method in self.experiment["methods"].values() if methods.is_mixed(method)]
        names = dict.fromkeys(method["allocation"]["sensitivity"] for method in mixed_methods)
        return [{"model": model, "sensitivity": name} for model in self.experiment["models"] for name in names]

    @functools.cached_property
    def sensitivity_files(self) -> list[str]:
        """The tables of `sensitivities`, and the models' manifests, which describe the layers."""
        models = dict.fromkeys(names["model"] for names in self.sensitivities)
        tables = [self.path("sensitivity", names) for names in self.sensitivities]
        return tables + [self.path("model", {"model": model}) for model in models]

    @functools.cached_property
    def figures(self) -> dict[str, list[str]]:
        """{figure: the paths that it reads}."""
        names = layout.figures(images=self.outputs == "images")
        return {name: [path for file in layout.FIGURES[name] for path in self._files(file)] for name in names}

    def _files(self, file):
        return self.of_cells(file) if "{" in layout.FILES[file] else [self.path(file, {})]

    def extractor_of(self, metric: str) -> str | None:
        """The extractor whose features a metric compares; None for a metric that reads images or predictions.

        Distances compare features of Inception if its weights are configured, else of the experiment's classifier or
        judge.
        """
        features = metric_entries.features_of(metric)
        if features != "distance":
            return features
        if self.config["inception_weights"]:
            return "inception"
        return "classifier" if self.experiment["classifier"] else "judge"

    def parts_of(self, names: dict[str, str]) -> dict[str, range]:
        """{digits in a part's name: range of images} of a set that several jobs generate."""
        return {image_parts.part_number(part.start): part for part in self.parts[names["sampling"]]}


@functools.cache
def _pictures(path):
    """The input pictures that a file of prompts names; paths in the project are relative to it."""
    asked = prompts.read(ROOT / path)[0] if (ROOT / path).is_file() else []
    found = dict.fromkeys(instructions.pictures(asked))
    return [str(picture.relative_to(ROOT) if picture.is_relative_to(ROOT) else picture) for picture in found]


_ENTRIES = {  # for `Plan.entry`: {kind: function of plan and wildcards}
    "model": lambda plan, names: plan._named("model", names["model"]),
    "method": lambda plan, names: plan._named("method", names["method"]),
    "checkpoint": lambda plan, names: plan.entry("method", names).get(methods.FOREIGN),
    "component": Plan._component,
    "metric": lambda plan, names: plan._named("metric", names["metric"]),
    "sampling": lambda plan, names: for_model(plan._named("sampling", names["sampling"]), names["model"]),
    "sensitivity": Plan._sensitivity,
    "solver": lambda plan, names: plan.entry("method", names)["solver"],
    "calibration": lambda plan, names: for_model(plan._given("calibration"), names["model"]),
    "reference": lambda plan, names: plan._given("reference"),
    "extractor": Plan._extractor,
    "measuring": lambda plan, names: plan.measuring,
    "limits": lambda plan, names: limits.of(plan.config),
    "policy": lambda plan, names: plan.policy,
    "protocol": lambda plan, names: protocols.published(plan.experiment["protocol"]),
    "data_sha256": lambda plan, names: plan.config["data_sha256"],
    "grid": lambda plan, names: plan._grid(),
    "grid with settings": lambda plan, names: (
        plan._grid("methods", "samplings") | {"sensitivities": plan.sensitivities, "margin": plan.config["margin"]}
    ),
}
_LOADED = {  # for `Plan.plugins`: {kind: function of plan and wildcards, which returns names}
    "caches": Plan._caches,
    "families": lambda plan, names: [plan.entry("model", names)["family"]],
    "formats": Plan._formats,
    "kernels": lambda plan, names: [name for weights in plan._formats(names) for name in plan.kernels.get(weights, ())],
    "transforms": lambda plan, names: [entry["name"] for entry in plan._quantized(names)["transforms"]],
    "solvers": Plan._solvers,
    "allocations": Plan._allocations,
    "loaders": Plan._loaders,
    "meters": lambda plan, names: plan._meters(),
    "extractors": lambda plan, names: [names["extractor"]],
    "metrics": lambda plan, names: [names["metric"]],
    "figures": lambda plan, names: [names["figure"]],
    "studies": lambda plan, names: [plan.experiment["study"]],
}
