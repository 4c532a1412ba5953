"""The checked configuration, and functions that give rules their parameters and resources. It has no rules.

quantwatt/config/slices.py lists the keys and plugins that each rule reads, quantwatt/config/inputs.py its input files,
and quantwatt/artifacts/layout.py the paths of all files.
"""

import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, str(Path(workflow.basedir) / "workflow_scripts"))

from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment as configuration
from quantwatt.config import grid_size, inputs, policy_file, schemas, slices, targets
from quantwatt.config.plan import Plan
from quantwatt.config.slices import run
from quantwatt.data import datasets
from quantwatt.inference.kernel_choice import KERNELS
from quantwatt.jobs import command, fingerprints, gpus, machine, model_memory, moved_results, score_memory, slurm

command.use_this_interpreter()

# A job's output goes to its log, its progress bars go to the terminal: see quantwatt/jobs/progress.py. The last exec
# makes the script a direct child of Snakemake, so that it ends with Snakemake: see quantwatt/jobs/command.py.
# Numpy's products would start a thread for each core, which wait for one another by spinning: beside another job that
# takes four times the CPU time. PyTorch has threads of its own; measured processes do without the limit, as on ARM it
# would be PyTorch's too.
shell.prefix("set -euo pipefail; export QUANTWATT_PROGRESS_FD=3 OPENBLAS_NUM_THREADS=1; exec 3>&2; exec ")


def refuse(sentence):
    """Log one sentence and exit: for an exception Snakemake would show lines of this file as if they were the cause."""
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
    policy_file.check_policy(CONFIG, EXPERIMENT)
    grid_size.check_jobs(EXPERIMENT, CONFIG, f"resources/experiments/{CONFIG['experiment']}.yaml")
    for option, word in zip(sys.argv, sys.argv[1:]):  # Snakemake sets the targets only after it has read the workflow
        if option != "--report":  # its argument is a file to write, not a target
            targets.check(word, EXPERIMENT, CONFIG)
except schemas.ConfigurationError as error:
    refuse(error)

if workflow.resource_settings.cores == 0 and not workflow.output_settings.dryrun:
    refuse("--cores 0 leaves no core for any job; write --cores all, or a number.")
if workflow.resource_settings.nodes is not None:  # jobs run on a cluster
    if CONFIG["device"] == "auto":
        source = configuration.source_of("device", SOURCES)
        refuse(f"{source}: device: auto asks this machine, and jobs run on others; write device=cuda or device=cpu.")
    slurm.use_squeue_without_accounting()

WITH_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
TORCH = machine.UNKNOWN if WITH_CONDA else machine.torch_build()
DEVICE = machine.resolve_device(CONFIG["device"], TORCH)
GPUS = 1 if DEVICE == "cuda" else 0  # per job
PAGE = sorted(str(path) for path in Path("resources/report/page").rglob("*") if path.is_file())
BLOCKS = [f"resources/measurements/{name}" for name in ("pipeline.json", "kernels.machine.json")]
EVALUATION = fingerprints.evaluations(EXPERIMENT["models"])
plan = Plan(CONFIG, EXPERIMENT, DEVICE, machine.resolve_meter(CONFIG["meter"], DEVICE, TORCH), KERNELS[DEVICE])

if GPUS and workflow.local_exec and "gpu" not in workflow.global_resources:  # else the scheduler or the user sets it
    workflow.register_resource("gpu", gpus.count())
if workflow.is_main_process and (sentence := moved_results.warning(plan.results, workflow.touch)):
    print(sentence, file=sys.stderr)


onstart:
    try:
        configuration.check_writable(CONFIG["results"], configuration.source_of("results", SOURCES))
    except schemas.ConfigurationError as error:
        refuse(error)
    # Refuse a device that torch cannot use on this machine if a job of this run needs it; on a cluster each job checks.
    needed = any("gpu" in job.rule.resources.keys() for job in workflow.dag.needrun_jobs())
    if workflow.local_exec and needed and (reason := machine.refusal(DEVICE, TORCH)):
        refuse(reason)
    # A limit of jobs per second is for schedulers. To keep it, Snakemake would look for jobs to start at an interval, once
    # more for each job that has ended: after 50 jobs half a core, also while others are measured; and end an interval late.
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None


wildcard_constraints:
    model="[^/]+",
    method="[^/]+",
    sampling="[^/]+",
    metric="[^/]+",
    extractor="[^/]+",
    sensitivity="[^/]+",
    component="[^/]+",
    hash="[0-9a-f]{12}",
    job=r"\d+",
    first=r"\d+",


def ask(function, *arguments):
    """A function of wildcards for a rule; Snakemake shows its configuration and data errors as WorkflowErrors."""

    def answer(wildcards):
        try:
            return function(*arguments, dict(wildcards.items()))
        except (schemas.ConfigurationError, DataError) as error:
            raise WorkflowError(str(error))

    return answer


def parameters(rule):
    """The slices of the configuration that a rule reads, and a hash of its code.

    The code is a hash, because dozens of input files per job would take most of the time of planning a large grid.
    """
    slices_of = {name: ask(plan.slice, rule, name) for name in slices.READS.get(rule, ())}
    for name in slices.unwatched(rule):  # Snakemake does not compare the results of functions of threads
        slices_of[name] = lambda wildcards, threads, answer=slices_of[name]: answer(wildcards)
    return slices_of | {"code": ask(plan.code, rule)}


def resources_of(stage):
    """Memory and time of the jobs of a stage, as set in config.yaml."""
    return {"mem_mb": CONFIG["memory_mb"][stage], "runtime": CONFIG["runtime_min"][stage]}


def model_resources(stage, models=1):
    """Resources of a job that loads models: a GPU, and enough memory for them, doubled at the second attempt."""

    def megabytes(wildcards, input, attempt):
        Path(input.get("checkpoint") or input.model).stat()  # FileNotFoundError: Snakemake asks again later
        manifest = plan.path("model", dict(wildcards.items()))
        return attempt * model_memory.at_least(manifest, CONFIG["memory_mb"][stage], models)

    return resources_of(stage) | {"mem_mb": megabytes, "gpu": GPUS}


def whole_machine(wildcards):
    """All cores that Snakemake may use. A function, because on a cluster the profile sets the number of threads."""
    return workflow.cores


def one_of(names):
    """The pattern of a wildcard that matches one of the names."""
    return "|".join(map(re.escape, names)) or "(?!)"  # matches nothing
