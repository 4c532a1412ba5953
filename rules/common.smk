"""The checked configuration, and the slices of it that rules take as parameters. No rules here."""

import json
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, str(Path(workflow.basedir) / "workflow_scripts"))

from quantwatt import registry
from quantwatt.artifacts import image_parts
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import canonical_json
from quantwatt.config import cross_checks
from quantwatt.config import experiment as configuration
from quantwatt.config import grid_size, methods, metric_entries, programs, schemas, targets
from quantwatt.data import datasets
from quantwatt.inference.kernel_choice import KERNELS
from quantwatt.jobs import command, dependencies, fingerprints, gpus, machine, model_memory, moved_results, slurm
from quantwatt.jobs.score_memory import score_memory_mb
from quantwatt.models import model_folder

command.use_this_interpreter()

# A job's output goes to its log, its progress bars to the terminal: see quantwatt/jobs/progress.py. The last exec makes
# the script Snakemake's own child, which ends with it: see quantwatt/jobs/command.py.
shell.prefix("set -euo pipefail; export QUANTWATT_PROGRESS_FD=3; exec 3>&2; exec ")


def refuse(sentence):
    """End with one sentence: Snakemake would put an exception between lines of this file, as if they were wrong."""
    logger.error(str(sentence))
    sys.exit(1)


try:
    SOURCES = configuration.sources(
        workflow.config_settings.configfiles,
        workflow.config_settings.config_args,
        replaced=workflow.config_settings.replace_workflow_config,
    )
    CONFIG = configuration.load_config(SOURCES)
    EXPERIMENT = configuration.load_experiment(CONFIG["experiment"], configuration.source_of("experiment", SOURCES))
    grid_size.check_jobs(EXPERIMENT, CONFIG, f"resources/experiments/{CONFIG['experiment']}.yaml")
except schemas.ConfigurationError as error:
    refuse(error)

if workflow.resource_settings.cores == 0 and not workflow.output_settings.dryrun:
    refuse("--cores 0 leaves no core for any job; write --cores all, or a number.")
if workflow.resource_settings.nodes is not None:  # of a cluster
    if CONFIG["device"] == "auto":
        source = configuration.source_of("device", SOURCES)
        refuse(f"{source}: device: auto asks this machine, and jobs run on others; write device=cuda or device=cpu.")
    slurm.replace_mute_sacct()

RESULTS = f"{CONFIG['results']}/{CONFIG['experiment']}"
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
WITH_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
TORCH = machine.UNKNOWN if WITH_CONDA else machine.torch_build()
DEVICE = machine.resolve_device(CONFIG["device"], TORCH)
GPUS = 1 if DEVICE == "cuda" else 0  # of each job
GRID = {"cells": EXPERIMENT["cells"], "metrics": list(EXPERIMENT["metrics"]), "baseline": EXPERIMENT["baseline"]}
OUTPUTS = "predictions" if EXPERIMENT["kind"] == "text" else "images"  # what the models make
METER = machine.resolve_meter(CONFIG["meter"], DEVICE)
MEASURING = CONFIG["measuring"] | EXPERIMENT["measuring"] | {"meter": METER}
MEASURED = MEASURING.pop("samplings")
MEASURED = list(EXPERIMENT["samplings"]) if MEASURED is None else MEASURED
MEASURING = canonical_json(MEASURING)
PARTS = {  # of the image sets that several jobs make: {sampling: ranges of images}
    name: parts
    for name, sampling in EXPERIMENT["samplings"].items()
    if OUTPUTS == "images" and len(parts := image_parts.parts(sampling, CONFIG["images_per_job"])) > 1
}
WHOLE = [name for name in EXPERIMENT["samplings"] if name not in PARTS]  # of those that one job makes
STUDY = [f"{RESULTS}/study/manifest.json"] if EXPERIMENT["study"] else []

if (
    GPUS and workflow.local_exec and "gpu" not in workflow.global_resources
):  # else a scheduler's business, or the user's
    workflow.register_resource("gpu", gpus.count())


onstart:
    try:
        configuration.check_writable(CONFIG["results"], configuration.source_of("results", SOURCES))
    except schemas.ConfigurationError as error:
        refuse(error)
    check_device()


wildcard_constraints:
    model="[^/]+",
    method="[^/]+",
    sampling="[^/]+",
    metric="[^/]+",
    extractor="[^/]+",
    sensitivity="[^/]+",
    job=r"\d+",
    first=r"\d+",


def check_device():
    """Refuse a device that torch cannot compute on here, where a job of this run needs it; of a cluster each job does."""
    needed = any("gpu" in job.rule.resources.keys() for job in workflow.dag.needrun_jobs())
    if workflow.local_exec and needed and (reason := machine.refusal(DEVICE, TORCH)):
        refuse(reason)


def entry(kind, name):
    """One entry of the experiment, or a sentence with the nearest spelling."""
    try:
        return targets.entry(EXPERIMENT, kind, name, CONFIG["experiment"])
    except schemas.ConfigurationError as error:
        raise WorkflowError(str(error))


def settings(kind, *keys):
    """A parameter function: the entry that the wildcard names, or some of its keys, as one canonical string."""

    def slice_of(wildcards):
        chosen = entry(kind, wildcards[kind.removesuffix("s")])
        return canonical_json({key: chosen[key] for key in keys} if keys else chosen)

    return slice_of


def sampling_of(wildcards):
    """The sampling that the wildcards name, with the texts of their model where it has several."""
    return configuration.for_model(entry("samplings", wildcards.sampling), wildcards.model)


def part_of(wildcards):
    """The range of images that the wildcards name, or a sentence with what there are."""
    starts = {image_parts.part_name(part.start): part for part in PARTS[wildcards.sampling]}
    name = f"part-{wildcards.first}.json"
    if name not in starts:
        raise WorkflowError(
            f"{wildcards.sampling}: no part begins at {wildcards.first}; parts are {', '.join(starts)}."
        )
    return starts[name]


def part_argument(wildcards):
    """`generate.py`'s argument for that range."""
    part = part_of(wildcards)
    return f"--part {part.start} {part.stop}"


def part_manifests(wildcards):
    """What vouches for the parts of an image set."""
    folder = f"{RESULTS}/images/{wildcards.model}/{wildcards.method}/{wildcards.sampling}"
    return [f"{folder}/{image_parts.part_name(part.start)}" for part in PARTS[wildcards.sampling]]


def first_images(wildcards):
    """`gather_images.py`'s argument for all parts: their first images, as a range, whose length has no limit."""
    parts = PARTS[wildcards.sampling]
    return f"0 {parts[-1].stop} {len(parts[0])}"


def drawing(wildcards):
    """What drawing a part, or measuring, reads of a sampling: not how many images there are in all."""
    return canonical_json({key: value for key, value in sampling_of(wildcards).items() if key != "images"})


def calibration_of(wildcards):
    """Likewise the calibration."""
    return configuration.for_model(EXPERIMENT["calibration"], wildcards.model)


def source(settings):
    """The file of prompts or texts that a sampling or calibration reads."""
    return settings.get("prompts") or settings["texts"]


def code(script, *plugins):
    """A parameter function: a hash of the script and every local module behind it; plugins by what the wildcards name.

    Dozens of input files of every job would take most of the time that a large grid is planned in.
    """

    def digest(wildcards):
        return dependencies.digest(script, tuple(name for plugin in plugins for name in plugin(wildcards)))

    return digest


def whole_machine(wildcards):
    """All cores that Snakemake was given, as a function: a cluster's profile tells the number instead."""
    return workflow.cores


def content(path):
    """A parameter that changes when a file or folder does, or None where nothing is local or a rule may make it."""
    if path and datasets.name_of(path) in datasets.YOURS:
        return fingerprints.listing(path) if Path(path).is_dir() else None
    if not path or path == "download" or datasets.name_of(path):
        return None
    try:
        return fingerprints.fingerprint(path)
    except DataError as error:
        raise WorkflowError(str(error))


def missing(names):
    """The pattern of a wildcard: those of the data sets that are not there.

    What is there is no rule's output, so that nothing fetches it again or writes over it: neither --forceall nor a
    changed script, nor the clearing away of outputs before a job.
    """
    return one_of(name for name in names if not Path(datasets.FOLDER, name).exists())


def one_of(names):
    """The pattern of a wildcard: one of some names."""
    return "|".join(map(re.escape, names)) or "(?!)"  # matches nothing


def reference_images(wildcards):
    """The real images, where they are a data set; those of another folder are known by their fingerprint."""
    folder = EXPERIMENT["reference"].get("folder")
    return [folder] if folder and datasets.name_of(folder) else []


def model_fingerprint(wildcards):
    """Likewise of what is read of a model's folder."""
    model = entry("models", wildcards.model)
    if not model.get("path"):
        return None
    try:
        return fingerprints.fingerprint(
            model["path"], model_folder.read_files(fingerprints.ROOT / model["path"], model)
        )
    except DataError as error:
        raise WorkflowError(str(error))


def family(wildcards):
    return [f"families/{entry('models', wildcards.model)['family']}"]


def formats(wildcards):
    """The formats that a method's layers may have."""
    method = entry("methods", wildcards.method)
    return formats_of([method, *method["allocation"].get("candidates", {}).values()])


def formats_of(entries):
    named = [entry["weights"]["format"] for entry in entries if entry.get("weights")]
    return [f"formats/{name}" for name in dict.fromkeys(named)]


def tried_formats(wildcards):
    """The formats that a sensitivity tries."""
    return formats_of(entry("sensitivities", wildcards.sensitivity)["candidates"].values())


def kernels(wildcards):
    """The kernels that may compute a method's layers on this device."""
    return kernels_of(formats(wildcards))


def tried_kernels(wildcards):
    """Likewise those of what a sensitivity tries."""
    return kernels_of(tried_formats(wildcards))


def kernels_of(modules):
    known = KERNELS[DEVICE]
    return [f"kernels/{name}" for module in modules for name in known.get(module.removeprefix("formats/"), [])]


def allocation(wildcards):
    method = entry("methods", wildcards.method)
    return [f"allocations/{method['allocation']['name']}"] if methods.is_quantized(method) else []


def formatting(wildcards):
    """What integer programs and their trials read of a method: all but its solver."""
    method = entry("methods", wildcards.method)
    return canonical_json({key: method[key] for key in ("weights", "activations", "transforms", "allocation")})


def allocating(wildcards):
    """What an allocation reads of a method: of its solver the name alone."""
    method = entry("methods", wildcards.method)
    chosen = {key: method[key] for key in ("weights", "activations", "transforms", "allocation")}
    return canonical_json(chosen | {"solver": method["solver"] and {"name": method["solver"]["name"]}})


def sensitivity_of(wildcards):
    """The sensitivity whose candidates a mixed method chooses from."""
    return entry("sensitivities", entry("methods", wildcards.method)["allocation"]["sensitivity"])


def trying(wildcards):
    """What trying layers reads of a sensitivity: not how their costs are measured."""
    sensitivity = entry("sensitivities", wildcards.sensitivity)
    return canonical_json({key: value for key, value in sensitivity.items() if key != "costs"})


def costing(wildcards):
    """What measuring layers reads of it: not what is scored, nor on how many images and in how many jobs."""
    left_out = ("jobs", "images", "batch_size", "objectives")
    sensitivity = entry("sensitivities", wildcards.sensitivity)
    return canonical_json({key: value for key, value in sensitivity.items() if key not in left_out})


def sensitivity_jobs(wildcards):
    """The tables of all jobs of a sensitivity."""
    jobs = range(entry("sensitivities", wildcards.sensitivity)["jobs"])
    return [f"{RESULTS}/sensitivity/{wildcards.model}/{wildcards.sensitivity}/job-{job}.csv" for job in jobs]


def program_inputs(wildcards):
    """The tables that a mixed method's integer programs read."""
    chosen = entry("methods", wildcards.method)["allocation"]
    table = f"{wildcards.model}/{chosen['sensitivity']}.csv"
    inputs = {"sensitivity": f"{RESULTS}/sensitivity/{table}"}
    if any(budget in program["budget"] for program in chosen["programs"] for budget in ("milliseconds", "joules")):
        inputs["costs"] = f"{RESULTS}/costs/{table}"
    return inputs


def choosing(wildcards):
    """What trying choices on images reads of a sensitivity: how images are drawn."""
    left_out = ("candidates", "exclude", "jobs", "costs", "objectives")
    chosen = {key: value for key, value in sensitivity_of(wildcards).items() if key not in left_out}
    return canonical_json(chosen)


def allocate_inputs(wildcards):
    """What a mixed allocation reads: the choices of its programs, and how far each errs where there are several."""
    method = entry("methods", wildcards.method)
    folder, inputs = f"{RESULTS}/allocation/{wildcards.model}/{wildcards.method}", {}
    if methods.is_mixed(method):
        inputs["candidates"] = f"{folder}/candidates.json"
        if programs.has_several_choices(method):
            inputs["trials"] = f"{folder}/trials.csv"
    return inputs


def arguments(inputs):
    """A script's arguments for such inputs."""
    return " ".join(f"--{name} {path}" for name, path in inputs.items())


def solver(wildcards):
    method = entry("methods", wildcards.method)
    transforms = [f"transforms/{transform['name']}" for transform in method["transforms"]]
    return transforms + [f"solvers/{method['solver']['name']}"] if method["solver"] else transforms


def meter(wildcards):
    names = [METER, "none", *(["rapl"] if METER == "nvml" else [])]  # where it cannot be read; beside a GPU
    return [f"meters/{name}" for name in dict.fromkeys(names)]


def cells(pattern):
    """The paths of a pattern for every cell of the experiment: an explicit list, never a glob."""
    return [pattern.format(**cell) for cell in EXPERIMENT["cells"]]


def quantize_inputs(wildcards):
    """What quantizing reads beside the model: calibration data, or the layers that an external solver has solved."""
    method = entry("methods", wildcards.method)
    inputs = {}
    if methods.is_external(method):
        inputs["solved"] = (
            f"{RESULTS}/solved/{method['solver']['name']}/{wildcards.model}/{wildcards.method}/manifest.json"
        )
    if methods.needs_calibration(method):
        inputs["calibration"] = f"{RESULTS}/calibration/{wildcards.model}/manifest.json"
    return inputs


def quantize_arguments(wildcards):
    """`quantize.py`'s arguments for those inputs."""
    return arguments(quantize_inputs(wildcards))


def external_solver(wildcards):
    """The settings of a method's solver alone: its other entries are in the allocation."""
    return canonical_json(entry("methods", wildcards.method)["solver"])


def backend_python(wildcards):
    """The interpreter of a library with an environment of its own: conda's with --sdm conda, else what `make backends`
    has made, where it has."""
    own = Path(".venvs") / wildcards.backend
    whole = (Path(workflow.basedir) / own / "installed").exists()
    return str(own / "bin" / "python") if whole and not WITH_CONDA else "python"


def extractor(wildcards):
    return [f"extractors/{wildcards.extractor}"]


def figure(wildcards):
    return [f"figures/{wildcards.figure}"]


def study(wildcards):
    return [f"studies/{EXPERIMENT['study']}"]


def metric(wildcards):
    return [f"metrics/{wildcards.metric}"]


def score_inputs(wildcards):
    """What a metric compares: features with the reference's and the baseline's, or a cell's outputs with the latter's."""
    entry("metrics", wildcards.metric)
    cell = "{model}/{method}/{sampling}".format(**wildcards)
    features = FEATURES_OF.get(wildcards.metric)
    baseline = f"{wildcards.model}/{EXPERIMENT['baseline']}/{wildcards.sampling}"
    if features is None:
        return {
            OUTPUTS: f"{RESULTS}/{OUTPUTS}/{cell}/manifest.json",
            "baseline": f"{RESULTS}/{OUTPUTS}/{baseline}/manifest.json",
        }
    inputs = {"features": f"{RESULTS}/features/{cell}/{features}.json"}
    if metric_entries.compares_with_reference(wildcards.metric):
        inputs["reference_features"] = f"{RESULTS}/features/reference/{features}.json"
    if wildcards.method != EXPERIMENT["baseline"]:
        inputs["baseline_features"] = f"{RESULTS}/features/{baseline}/{features}.json"
    return inputs


def score_arguments(wildcards):
    """`score.py`'s arguments for those inputs."""
    options = [f"--{name.replace('_', '-')} {path}" for name, path in score_inputs(wildcards).items()]
    if wildcards.method == EXPERIMENT["baseline"] and wildcards.metric not in FEATURES_OF:
        options.append("--is-baseline")
    return " ".join(options)


def memory(stage):
    """A resource function: megabytes of a job that loads a model, of its second attempt twice as many.

    Until the model is there, a FileNotFoundError says so to Snakemake.
    """

    def megabytes(wildcards, input, attempt):
        manifest = Path(RESULTS, "models", wildcards.model, "manifest.json")
        Path(input.get("checkpoint") or input.model).stat()  # made after the model's manifest, or that itself
        least = CONFIG["memory_mb"][stage]
        return attempt * (model_memory.model_memory_mb(manifest, least) if manifest.exists() else least)

    return megabytes


def score_memory(wildcards, input):
    """Megabytes, from what vouches for the features; until that is there, a FileNotFoundError says so to Snakemake."""
    found = {name: json.loads(Path(path).read_text()) for name, path in input.items() if name.endswith("features")}
    return score_memory_mb(wildcards.metric, found.pop("reference_features", None), found.values())


# Distances compare Inception's features where its weights are at hand, else those of the experiment's classifier or
# judge.
CLASSIFIER = EXPERIMENT["classifier"]
DISTANCES = "inception" if CONFIG["inception_weights"] else "classifier" if CLASSIFIER else "judge"
FEATURES_OF = {
    metric: DISTANCES if features == "distance" else features
    for metric in registry.names("metrics")
    if (features := metric_entries.features_of(metric))
}
METRIC_WORDS = canonical_json(metric_entries.words())
JUDGE = EXPERIMENT["judge"]["model"]
LOCAL_JUDGE = JUDGE.removeprefix(cross_checks.LOCAL_JUDGE) if JUDGE.startswith(cross_checks.LOCAL_JUDGE) else None
EXTRACTORS = {
    "judge": canonical_json(EXPERIMENT["judge"]),
    "inception": canonical_json({"weights": CONFIG["inception_weights"]}),
    "classifier": canonical_json(CLASSIFIER),
}
EXTRACTOR_FINGERPRINTS = {
    "judge": content(LOCAL_JUDGE),
    "inception": content(CONFIG["inception_weights"]),
    "classifier": content(CLASSIFIER and CLASSIFIER["path"]),
}
FIGURES = {
    "quality_vs_cost": [f"{RESULTS}/tables/summary.csv"],
    "seeds": [f"{RESULTS}/tables/summary.csv"],
    "layer_error": [f"{RESULTS}/tables/summary.csv", f"{RESULTS}/tables/layers.csv"],
    "layer_depth": [f"{RESULTS}/tables/summary.csv", f"{RESULTS}/tables/layers.csv"],
    "power_trace": [f"{RESULTS}/tables/summary.csv"]
    + cells(f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/power.csv"),
}
if OUTPUTS == "images":
    FIGURES["image_grid"] = [
        f"{RESULTS}/tables/summary.csv",
        *cells(f"{RESULTS}/images/{{model}}/{{method}}/{{sampling}}/manifest.json"),
    ]
    FIGURES |= {"steps": [f"{RESULTS}/tables/summary.csv"], "budget": [f"{RESULTS}/tables/summary.csv"]}
    FIGURES["sensitivity"] = [f"{RESULTS}/tables/{table}.csv" for table in ("summary", "layers", "sensitivity")]
CELL_FILES = [
    *cells(f"{RESULTS}/checkpoints/{{model}}/{{method}}/manifest.json"),
    *cells(f"{RESULTS}/{OUTPUTS}/{{model}}/{{method}}/{{sampling}}/manifest.json"),
    *cells(f"{RESULTS}/measurements/{{model}}/{{method}}/{{sampling}}/measurement.json"),
    *(
        path
        for metric in EXPERIMENT["metrics"]
        for path in cells(f"{RESULTS}/scores/{{model}}/{{method}}/{{sampling}}/{metric}.json")
    ),
]
SENSITIVITIES = [  # by which some method chooses layers' formats
    {"model": model, "sensitivity": name}
    for model in EXPERIMENT["models"]
    for name in dict.fromkeys(
        method["allocation"]["sensitivity"]
        for method in EXPERIMENT["methods"].values()
        if method["allocation"]["name"] == "mixed"
    )
]
SENSITIVITY_FILES = [f"{RESULTS}/sensitivity/{own['model']}/{own['sensitivity']}.csv" for own in SENSITIVITIES] + [
    f"{RESULTS}/models/{model}/manifest.json" for model in dict.fromkeys(own["model"] for own in SENSITIVITIES)
]
# What scripts read of all cells, on standard input: no argument may be longer than 131,072 bytes, of 1,800 cells.
CELLS = canonical_json(GRID)
ENTRIES = canonical_json(  # likewise what the tables read, and hold the cells against
    GRID | {key: EXPERIMENT[key] for key in ("methods", "samplings")} | {"sensitivities": SENSITIVITIES}
)
EVALUATION = fingerprints.evaluations(EXPERIMENT["models"])

if workflow.is_main_process and (sentence := moved_results.warning(RESULTS, workflow.touch)):
    print(sentence, file=sys.stderr)

try:
    for option, word in zip(sys.argv, sys.argv[1:]):  # a workflow is told its targets only after it has been read
        if option != "--report":  # which names a file to write
            targets.check(word, EXPERIMENT, CONFIG)
except schemas.ConfigurationError as error:
    refuse(error)
