"""The checked configuration, and the slices of it that rules take as parameters. No rules here."""

import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(Path(workflow.basedir) / "workflow_scripts"))

from quantwatt import dependencies, experiment as configuration
from quantwatt.manifest import canonical_json

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
METER = configuration.resolve_meter(CONFIG["meter"], DEVICE)
MEASURING = canonical_json(CONFIG["measuring"] | {"meter": METER})


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


def settings(kind):
    """A parameter function: the entry that the wildcard names, as one canonical string."""
    return lambda wildcards: canonical_json(entry(kind, wildcards[kind.removesuffix("s")]))


def code(script, *plugins):
    """An input function: the script and every local module behind it; plugins by what the wildcards name."""

    def files(wildcards):
        names = [name for plugin in plugins for name in plugin(wildcards)]
        return [str(path.relative_to(workflow.basedir)) for path in dependencies.closure(script, names)]

    return files


def family(wildcards):
    return [f"families/{entry('models', wildcards.model)['family']}"]


def formats(wildcards):
    weights = entry("methods", wildcards.method)["weights"]
    return [f"formats/{weights['format']}"] if weights else []


def allocation(wildcards):
    method = entry("methods", wildcards.method)
    return [f"allocations/{method['allocation']['name']}"] if method["weights"] else []


def solver(wildcards):
    chosen = entry("methods", wildcards.method)["solver"]
    return [f"solvers/{chosen['name']}"] if chosen else []


def meter(wildcards):
    return [f"meters/{METER}"]


def cells(pattern):
    """The paths of a pattern for every cell of the experiment: an explicit list, never a glob."""
    return [pattern.format(**cell) for cell in EXPERIMENT["cells"]]
