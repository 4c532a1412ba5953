"""The checked configuration, and the slices of it that rules take as parameters. No rules here."""

import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, str(Path(workflow.basedir) / "workflow_scripts"))

from quantwatt import command, dependencies, experiment as configuration
from quantwatt.manifest import canonical_json

command.use_this_interpreter()

# A job's output goes to its log, its progress bars to the terminal: see quantwatt/progress.py.
shell.prefix("set -euo pipefail; export QUANTWATT_PROGRESS_FD=3; exec 3>&2; ")

try:
    CONFIG = configuration.load_config(config)
    EXPERIMENT = configuration.load_experiment(CONFIG["experiment"])
except configuration.ConfigurationError as error:
    raise WorkflowError(str(error))

RESULTS = f"{CONFIG['results']}/{CONFIG['experiment']}"
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
DEVICE = configuration.resolve_device(CONFIG["device"])
GPUS = 1 if DEVICE == "cuda" else 0
CELLS = canonical_json(EXPERIMENT["cells"])
METRICS = canonical_json(list(EXPERIMENT["metrics"]))
OUTPUTS = "predictions" if EXPERIMENT["kind"] == "text" else "images"  # what the models make
METER = configuration.resolve_meter(CONFIG["meter"], DEVICE)
MEASURING = canonical_json(CONFIG["measuring"] | EXPERIMENT["measuring"] | {"meter": METER})
STUDY = [f"{RESULTS}/study/manifest.json"] if EXPERIMENT["study"] else []


wildcard_constraints:
    model="[^/]+",
    method="[^/]+",
    sampling="[^/]+",
    metric="[^/]+",
    extractor="[^/]+",


def entry(kind, name):
    """One entry of the experiment, or a sentence with the nearest spelling."""
    file = f"resources/experiments/{CONFIG['experiment']}.yaml"
    try:
        return configuration.lookup(EXPERIMENT[kind], name, kind.removesuffix("s"), file)
    except configuration.ConfigurationError as error:
        raise WorkflowError(str(error))


def check_target(path):
    """Refuse a target of an unknown model, method, sampling or metric before the graph is built.

    Snakemake would say the same, wrapped in a traceback of input functions.
    """
    stage, *names = Path(path).relative_to(RESULTS).parts
    names = names[1:] if stage == "solved" else names  # of a solver first
    stages = (
        "checkpoints",
        "allocation",
        "exchange",
        "solved",
        "images",
        "predictions",
        "measurements",
        "features",
        "scores",
    )
    if stage in stages and names[:1] != ["reference"]:
        kinds = ["models", "methods", "samplings"] + (["metrics"] if stage == "scores" else [])
        for kind, name in zip(kinds, [name for name in names if name != "manifest.json"]):
            entry(kind, name.removesuffix(".json"))


def settings(kind, *keys):
    """A parameter function: the entry that the wildcard names, or some of its keys, as one canonical string."""

    def slice_of(wildcards):
        chosen = entry(kind, wildcards[kind.removesuffix("s")])
        return canonical_json({key: chosen[key] for key in keys} if keys else chosen)

    return slice_of


def sampling_of(wildcards):
    """The sampling that the wildcards name, with the texts of their model where it has several."""
    return configuration.for_model(entry("samplings", wildcards.sampling), wildcards.model)


def calibration_of(wildcards):
    """Likewise the calibration."""
    return configuration.for_model(EXPERIMENT["calibration"], wildcards.model)


def source(settings):
    """The file of prompts or texts that a sampling or calibration reads."""
    return settings.get("prompts") or settings["texts"]


def code(script, *plugins):
    """An input function: the script and every local module behind it; plugins by what the wildcards name."""

    def files(wildcards):
        names = [name for plugin in plugins for name in plugin(wildcards)]
        return [str(path.relative_to(workflow.basedir)) for path in dependencies.closure(script, names)]

    return files


def content(path):
    """A parameter that changes when a file or folder does, or None where nothing is local."""
    return configuration.fingerprint(path) if path and path != "download" else None


def model_fingerprint(wildcards):
    return content(entry("models", wildcards.model).get("path"))


def family(wildcards):
    return [f"families/{entry('models', wildcards.model)['family']}"]


def formats(wildcards):
    weights = entry("methods", wildcards.method)["weights"]
    return [f"formats/{weights['format']}"] if weights else []


def allocation(wildcards):
    method = entry("methods", wildcards.method)
    return [f"allocations/{method['allocation']['name']}"] if method["weights"] else []


def solver(wildcards):
    method = entry("methods", wildcards.method)
    transforms = [f"transforms/{transform['name']}" for transform in method["transforms"]]
    return transforms + [f"solvers/{method['solver']['name']}"] if method["solver"] else transforms


def meter(wildcards):
    return [f"meters/{METER}"] + (["meters/rapl"] if METER == "nvml" else [])  # beside a GPU, the processor


def cells(pattern):
    """The paths of a pattern for every cell of the experiment: an explicit list, never a glob."""
    return [pattern.format(**cell) for cell in EXPERIMENT["cells"]]


def quantize_inputs(wildcards):
    """What quantizing reads beside the model: calibration data, or the layers that an external solver has solved."""
    method = entry("methods", wildcards.method)
    inputs = {}
    if configuration.is_external(method):
        inputs["solved"] = (
            f"{RESULTS}/solved/{method['solver']['name']}/{wildcards.model}/{wildcards.method}/manifest.json"
        )
    if configuration.needs_calibration(method):
        inputs["calibration"] = f"{RESULTS}/calibration/{wildcards.model}/manifest.json"
    return inputs


def quantize_arguments(wildcards):
    """`quantize.py`'s arguments for those inputs."""
    return " ".join(f"--{name} {path}" for name, path in quantize_inputs(wildcards).items())


def external_solver(wildcards):
    """The settings of a method's solver alone: its other entries are in the allocation."""
    return canonical_json(entry("methods", wildcards.method)["solver"])


def backend_python(wildcards):
    """The interpreter of a library with an environment of its own: conda's with --sdm conda, else what `make backends`
    has made, where it has."""
    own = Path(".venvs") / wildcards.backend
    with_conda = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
    whole = (Path(workflow.basedir) / own / "installed").exists()
    return str(own / "bin" / "python") if whole and not with_conda else "python"


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
    if wildcards.metric != "clip-score":
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


# FID and KID compare Inception's features where its weights are at hand, else those of the experiment's judge.
FEATURES_OF = {
    "fid": "inception" if CONFIG["inception_weights"] else "judge",
    "kid": "inception" if CONFIG["inception_weights"] else "judge",
    "clip-score": "judge",
}
JUDGE = EXPERIMENT["judge"]["model"]
LOCAL_JUDGE = JUDGE.removeprefix(configuration.LOCAL_JUDGE) if JUDGE.startswith(configuration.LOCAL_JUDGE) else None
EXTRACTORS = {
    "judge": canonical_json(EXPERIMENT["judge"]),
    "inception": canonical_json({"weights": CONFIG["inception_weights"]}),
}
EXTRACTOR_FINGERPRINTS = {"judge": content(LOCAL_JUDGE), "inception": content(CONFIG["inception_weights"])}
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
EVALUATION = ["resources/models/evaluation.json"] if LOCAL_JUDGE == "resources/models/judge" else []

for word in sys.argv[1:]:  # Snakemake tells a workflow its targets only after it has been read
    if word.startswith(f"{RESULTS}/"):
        check_target(word)
