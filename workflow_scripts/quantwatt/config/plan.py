"""What each job of a run reads: its slices of the configuration, its plugins, its files, and its script's arguments.

Wildcards are mappings here, {"model": NAME, ...}: nothing of this needs Snakemake.
"""

import functools
from pathlib import Path

from quantwatt.artifacts import image_parts, layout
from quantwatt.config import methods, metric_entries, programs, slices, targets
from quantwatt.config.cross_checks import LOCAL_JUDGE
from quantwatt.config.experiment import for_model
from quantwatt.config.schemas import ConfigurationError, lookup
from quantwatt.data import datasets
from quantwatt.jobs import dependencies, fingerprints
from quantwatt.models import model_folder

WITH_TEXTS = ("sampling", "calibration", "sensitivity")  # entries that name a file of prompts or texts
FIGURES = {  # {figure: the files that it reads, those with wildcards of every cell}
    "quality_vs_cost": ("summary",),
    "seeds": ("summary",),
    "layer_error": ("summary", "layers"),
    "layer_depth": ("summary", "layers"),
    "power_trace": ("summary", "power"),
}
IMAGE_FIGURES = {  # of models that draw images only
    "image_grid": ("summary", "images"),
    "steps": ("summary",),
    "budget": ("summary",),
    "sensitivity": ("summary", "layers", "sensitivities"),
}


class Plan:
    """A checked configuration and experiment, on one device.

    Args:
        config, experiment: complete.
        device: "cpu" or "cuda".
        meter: as resolved for this machine.
        kernels: {format of weights: names of the kernels that may compute it on the device}.
    """

    def __init__(self, config, experiment, device, meter, kernels):
        self.config, self.experiment = config, experiment
        self.device, self.meter, self.kernels = device, meter, kernels
        self.results = f"{config['results']}/{config['experiment']}"
        self.file = f"resources/experiments/{config['experiment']}.yaml"  # for messages
        self.outputs = "predictions" if experiment["kind"] == "text" else "images"  # what the models make
        measuring = config["measuring"] | experiment["measuring"] | {"meter": meter}
        measured = measuring.pop("samplings")
        self.measuring = measuring
        self.measured = list(experiment["samplings"]) if measured is None else measured
        self.parts = {  # of the image sets that several jobs make: {sampling: ranges of images}
            name: parts
            for name, sampling in experiment["samplings"].items()
            if self.outputs == "images" and len(parts := image_parts.parts(sampling, config["images_per_job"])) > 1
        }
        self.whole_sets = [name for name in experiment["samplings"] if name not in self.parts]

    # Entries and their slices

    def entry(self, kind, names):
        """The entry that a job's wildcards name.

        Args:
            kind: of a `Slice`.
            names: the wildcards.
        Raises:
            ConfigurationError: there is none; with the nearest spelling.
        """
        experiment = self.experiment
        match kind:
            case "model" | "method" | "metric":
                return self._named(kind, names[kind])
            case "sampling":  # with the texts of its model, where it has several
                return for_model(self._named("sampling", names["sampling"]), names["model"])
            case "sensitivity":  # by which a mixed method chooses, where no wildcard names it
                chosen = names.get(kind) or self.entry("method", names)["allocation"]["sensitivity"]
                return self._named(kind, chosen)
            case "solver":
                return self.entry("method", names)["solver"]
            case "calibration":
                return for_model(self._given(kind), names["model"])
            case "reference":
                return self._given(kind)
            case "extractor":
                inception = {"weights": self.config["inception_weights"]}
                known = {"judge": experiment["judge"], "inception": inception, "classifier": experiment["classifier"]}
                return lookup(known, names["extractor"], "extractor", self.file)
            case "measuring":
                return self.measuring
            case "grid":
                return {key: experiment[key] for key in ("cells", "baseline")} | {
                    "metrics": list(experiment["metrics"])
                }
            case "grid with settings":
                settings = {key: experiment[key] for key in ("methods", "samplings")}
                return self.entry("grid", names) | settings | {"sensitivities": self.sensitivities}
        raise ValueError(f"{kind}: no kind of entry.")

    def _named(self, kind, name):
        return targets.entry(self.experiment, kind, name, self.config["experiment"])

    def _given(self, kind):
        if self.experiment[kind] is None:
            raise ConfigurationError(f"{self.file}: {kind}: missing, and what is asked for needs it.")
        return self.experiment[kind]

    def slice(self, rule, parameter, names):
        """One of a rule's parameters of READS for one job, a canonical JSON string."""
        own = slices.READS[rule][parameter]
        return own.of(self.entry(own.entry, names))

    def texts(self, rule, names):
        """The file of prompts or texts that a rule's sampling, calibration or sensitivity names."""
        kind = next(own.entry for own in slices.READS[rule].values() if own.entry in WITH_TEXTS)
        entry = self.entry(kind, names)
        return entry.get("prompts") or entry["texts"]

    # Plugins and code

    def code(self, rule, names):
        """A hash of a rule's script and of every local module behind it, for one job."""
        return dependencies.digest(slices.script(rule), tuple(self.plugins(rule, names)))

    def plugins(self, rule, names):
        """The plugins that a job loads, as modules: "solvers/gptq"."""
        return [f"{folder}/{name}" for folder in slices.PLUGINS.get(rule, ()) for name in self._loaded(folder, names)]

    def _loaded(self, folder, names):
        """Names of the plugins of one folder."""
        match folder:
            case "families":
                return [self.entry("model", names)["family"]]
            case "formats":
                return self._formats(names)
            case "kernels":
                return [kernel for name in self._formats(names) for kernel in self.kernels.get(name, ())]
            case "transforms":
                return [transform["name"] for transform in self.entry("method", names)["transforms"]]
            case "solvers":
                solver = self.entry("method", names)["solver"]
                return [solver["name"]] if solver else []
            case "allocations":
                method = self.entry("method", names)
                return [method["allocation"]["name"]] if methods.is_quantized(method) else []
            case "meters":  # what stands in where it cannot be read; what measures beside a GPU's
                return list(dict.fromkeys([self.meter, "none", *(["rapl"] if self.meter == "nvml" else [])]))
            case "studies":
                return [self.experiment["study"]]
        return [names[{"extractors": "extractor", "metrics": "metric", "figures": "figure"}[folder]]]

    def _formats(self, names):
        """The formats that a method's layers may have, or that a sensitivity tries."""
        if "method" in names:
            method = self.entry("method", names)
            entries = [method, *method["allocation"].get("candidates", {}).values()]
        else:
            entries = self.entry("sensitivity", names)["candidates"].values()
        return list(dict.fromkeys(entry["weights"]["format"] for entry in entries if entry.get("weights")))

    # Files

    def path(self, file, names):
        """The path of a file of `layout.FILES`."""
        return str(layout.path(self.results, file, names))

    def pattern(self, file, **names):
        """The same with wildcards for what is not given."""
        return layout.pattern(self.results, file, names)

    def log(self, rule):
        """The pattern of a rule's log."""
        return f"{self.results}/logs/{layout.JOBS[rule]}.log"

    def benchmark(self, rule):
        """The pattern of the file with a rule's time and memory."""
        return f"{self.results}/benchmarks/{layout.JOBS[rule]}.tsv"

    def of_cells(self, file, **names):
        """A file of every cell of the experiment: an explicit list, never a glob."""
        return [self.path(file, names | cell) for cell in self.experiment["cells"]]

    @functools.cached_property
    def cell_files(self):
        """All that tells of the cells: what the tables read."""
        scores = [path for metric in self.experiment["metrics"] for path in self.of_cells("score", metric=metric)]
        return [path for file in ("checkpoint", self.outputs, "measurement") for path in self.of_cells(file)] + scores

    @functools.cached_property
    def sensitivities(self):
        """[{"model", "sensitivity"}] of all by which some method chooses layers' formats."""
        mixed_methods = [own for own in self.experiment["methods"].values() if methods.is_mixed(own)]
        names = dict.fromkeys(own["allocation"]["sensitivity"] for own in mixed_methods)
        return [{"model": model, "sensitivity": name} for model in self.experiment["models"] for name in names]

    @functools.cached_property
    def sensitivity_files(self):
        """Their tables, and the models that describe the layers."""
        models = dict.fromkeys(own["model"] for own in self.sensitivities)
        tables = [self.path("sensitivity", own) for own in self.sensitivities]
        return tables + [self.path("model", {"model": model}) for model in models]

    @functools.cached_property
    def figures(self):
        """{figure: the paths that it reads}."""
        drawn = FIGURES | (IMAGE_FIGURES if self.outputs == "images" else {})
        return {name: [path for file in files for path in self._files(file)] for name, files in drawn.items()}

    def _files(self, file):
        return self.of_cells(file) if "{" in layout.FILES[file] else [self.path(file, {})]

    def inputs(self, rule, names):
        """The input files of a rule that depend on what an entry says, {name: path, or list of them}."""
        match rule:
            case "sensitivity":
                jobs = range(self.entry("sensitivity", names)["jobs"])
                return {"tables": [self.path("sensitivity_job", names | {"job": job}) for job in jobs]}
            case "candidates":
                return self._inputs_of_candidates(names)
            case "allocate":
                return self._inputs_of_allocation(names)
            case "quantize":
                return self._inputs_of_quantizing(names)
            case "gather_images":
                starts = [{"first": image_parts.part_number(part.start)} for part in self.parts[names["sampling"]]]
                return {"parts": [self.path("part", names | start) for start in starts]}
            case "reference":  # real images where they are a data set; other folders are known by their fingerprint
                folder = self.entry("reference", names).get("folder")
                return {"images": [folder] if folder and datasets.name_of(folder) else []}
            case "score":
                return self._inputs_of_score(names)
        raise ValueError(f"{rule}: its inputs are the same for all entries.")

    def _inputs_of_candidates(self, names):
        """The tables that a mixed method's integer programs read."""
        method = self.entry("method", names)
        own = names | {"sensitivity": method["allocation"]["sensitivity"]}
        files = ["sensitivity", *(["costs"] if programs.needs_costs(method) else [])]
        return {file: self.path(file, own) for file in files}

    def _inputs_of_allocation(self, names):
        """Of a mixed method the choices of its programs, and how far each errs where there are several."""
        method = self.entry("method", names)
        files = ["candidates"] if methods.is_mixed(method) else []
        files += ["trials"] if files and programs.has_several_choices(method) else []
        return {file: self.path(file, names) for file in files}

    def _inputs_of_quantizing(self, names):
        """The layers that an external solver has solved, and calibration data."""
        method, inputs = self.entry("method", names), {}
        if methods.is_external(method):
            inputs["solved"] = self.path("solved", names | {"backend": method["solver"]["name"]})
        if methods.needs_calibration(method):
            inputs["calibration"] = self.path("calibration", names)
        return inputs

    def _inputs_of_score(self, names):
        """A cell's features with the reference's and the baseline's, or its outputs with the latter's."""
        self.entry("metric", names)
        baseline, extractor = names | {"method": self.experiment["baseline"]}, self.extractor_of(names["metric"])
        if extractor is None:
            return {self.outputs: self.path(self.outputs, names), "baseline": self.path(self.outputs, baseline)}
        inputs = {"features": self.path("features", names | {"extractor": extractor})}
        if metric_entries.compares_with_reference(names["metric"]):
            inputs["reference_features"] = self.path("reference_features", {"extractor": extractor})
        if names["method"] != self.experiment["baseline"]:
            inputs["baseline_features"] = self.path("features", baseline | {"extractor": extractor})
        return inputs

    def extractor_of(self, metric):
        """The extractor whose features a metric compares, None where it reads images or predictions themselves.

        Distances compare Inception's features where its weights are at hand, else those of the experiment's classifier
        or judge.
        """
        features = metric_entries.features_of(metric)
        if features != "distance":
            return features
        if self.config["inception_weights"]:
            return "inception"
        return "classifier" if self.experiment["classifier"] else "judge"

    def fingerprint(self, rule, names):
        """A hash of the files that an entry names, or None where nothing is local or a rule may make it.

        Raises:
            DataError: a file cannot be read.
        """
        match rule:
            case "model":
                model = self.entry("model", names)
                if not model.get("path"):
                    return None
                read = model_folder.read_files(fingerprints.ROOT / model["path"], model)
                return fingerprints.fingerprint(model["path"], read)
            case "reference":
                return content(self.entry("reference", names).get("folder"))
            case "fetch_weights":
                entry = self.entry("extractor", names)
                match names["extractor"]:
                    case "judge":
                        local = entry["model"].startswith(LOCAL_JUDGE)
                        return content(entry["model"].removeprefix(LOCAL_JUDGE)) if local else None
                    case "inception":
                        return content(entry["weights"])
                return content(entry and entry["path"])
        raise ValueError(f"{rule}: reads no files that an entry names.")

    # Arguments of scripts

    def arguments(self, rule, names):
        """A script's arguments for `inputs`."""
        words = [f"--{name.replace('_', '-')} {path}" for name, path in self.inputs(rule, names).items()]
        if (
            rule == "score"
            and names["method"] == self.experiment["baseline"]
            and not self.extractor_of(names["metric"])
        ):
            words.append("--is-baseline")
        return " ".join(words)

    def part_argument(self, names):
        """`generate.py`'s argument for one part: its first image and the one behind its last.

        Raises:
            ConfigurationError: no part begins there.
        """
        starts = {image_parts.part_number(part.start): part for part in self.parts[names["sampling"]]}
        if names["first"] not in starts:
            known = ", ".join(starts)
            raise ConfigurationError(f"{names['sampling']}: no part begins at {names['first']}; parts are {known}.")
        part = starts[names["first"]]
        return f"--part {part.start} {part.stop}"

    def first_images(self, names):
        """The first images of all parts as a range, START STOP STEP, whose length has no limit as a list's has."""
        parts = self.parts[names["sampling"]]
        return f"0 {parts[-1].stop} {len(parts[0])}"


def content(path):
    """A hash of a file or folder, or None where nothing is local or a rule may make it.

    Raises:
        DataError: a file cannot be read.
    """
    if not path or path == "download":
        return None
    name = datasets.name_of(path)
    if name in datasets.YOURS:
        return fingerprints.listing(path) if Path(path).is_dir() else None
    return None if name else fingerprints.fingerprint(path)
