"""The workflow through a real SLURM: what it asks for, and that nothing is lost when something dies."""

import re
import shutil
import subprocess
import sys

import cluster
import psutil
import pytest
import yaml
from workflow.conftest import copy_of_the_tree

OBSTACLE = cluster.obstacle()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))]

EXPERIMENT = "cluster"
RESULTS = f"results/{EXPERIMENT}"
CELL = "tiny-sd3, rtn-w8a8, steps-4"
IMAGES = f"{RESULTS}/images/tiny-sd3/rtn-w8a8/steps-4"
SCRIPT = "workflow_scripts/generate.py"
TARGET = f"{RESULTS}/tables/summary.csv"
LOST = {f"Generate images: {CELL}", f"Score psnr: {CELL}", "Write the tables"}
ON_THE_GPU = ("quantize", "generate", "measure")
QUICK = {
    "slurm-init-seconds-before-status-checks": 3,
    "seconds-between-status-checks": 2,
    "latency-wait": 5,
    "set-threads": {"measure": 2},
}


class Run:
    """Snakemake at work on the cluster, as `--workflow-profile profiles/slurm` starts it, with some settings changed.

    The models of this experiment run on the processor, and their jobs ask for the GPU none the less.
    """

    def __init__(self, project, slurm, **resources):
        self.project = project
        profile = yaml.safe_load(project.path("profiles/slurm/config.yaml").read_text()) | QUICK
        for rule in ON_THE_GPU:
            profile["set-resources"].setdefault(rule, {})["gpu"] = 1
        profile["set-resources"]["generate"] |= resources
        project.path("profiles/test").mkdir(exist_ok=True)
        project.path("profiles/test/config.yaml").write_text(yaml.safe_dump(profile))
        self.log = project.path("run.log")
        command = [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/test"]
        command += ["--configfile", "tests/workflow/quick.yaml", "--config", f"experiment={EXPERIMENT}", "--", TARGET]
        with self.log.open("w") as log:
            settings = {"cwd": project.folder, "env": slurm.environment}
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **settings)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()

    def wait(self):
        """Wait for its end; returns (exit code, output)."""
        return self.process.wait(3600), self.log.read_text()


def run(project, slurm, **resources):
    """A whole run; returns (exit code, output)."""
    with Run(project, slurm, **resources) as running:
        return running.wait()


@pytest.fixture(scope="module")
def slurm():
    running = cluster.Cluster()
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory):
    """A project after one whole run on the cluster; `jobs` is what SLURM knows of them."""
    project = copy_of_the_tree(tmp_path_factory.mktemp("project"))
    experiment = yaml.safe_load(project.path("resources/experiments/smoke.yaml").read_text())
    for key in ("study", "reference"):
        del experiment[key]
    del experiment["methods"]["gptq-w3"]
    experiment |= {"metrics": {"psnr": None}}
    project.path(f"resources/experiments/{EXPERIMENT}.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    with project.path("tests/workflow/quick.yaml").open("a") as file:
        file.write("device: cpu\n")
    project.commit()
    code, output = run(project, slurm)
    assert code == 0, output
    project.output, project.jobs = output, slurm.jobs()
    return project


@pytest.fixture
def robbed(undisturbed, tmp_path):
    """A copy of it that has lost one method's images, and what is made of them."""
    project = undisturbed.copy(tmp_path / "copy")
    for folder in ("images/tiny-sd3/rtn-w8a8", "scores/tiny-sd3/rtn-w8a8", "tables"):
        shutil.rmtree(project.path(f"{RESULTS}/{folder}"))
    assert missing(project) == LOST
    return project


def missing(project):
    return project.plan("--", TARGET, experiment=EXPERIMENT)


def generating(project, slurm):
    """The number of the job that draws a project's images, and its script's process, once it runs."""

    def found():
        for process in psutil.process_iter(["cmdline", "cwd"]):
            if process.info["cwd"] == str(project.folder) and SCRIPT in (process.info["cmdline"] or ()):
                return process
        return None

    process = slurm.wait_for(found, "process of the script that generates", 900)
    return slurm.job_of("generate", "RUNNING"), process


def made(output):
    """Messages of the jobs that a run has started."""
    return set(re.findall(r"^Job \d+: (.*)$", output, flags=re.MULTILINE))


def assert_as_undisturbed(project, undisturbed):
    assert missing(project) == set()
    names = {
        path.relative_to(undisturbed.folder)
        for pattern in ("images/**/*.png", "tables/*.csv")
        for path in undisturbed.path(RESULTS).glob(pattern)
    }
    assert len(names) == 2 * 16 + 3
    for name in names:
        assert project.path(name).read_bytes() == undisturbed.path(name).read_bytes(), name


def assert_the_rest_is_made(project, undisturbed, slurm):
    """A second run makes what the first did not, and nothing else."""
    assert missing(project) == LOST
    code, output = run(project, slurm)
    assert code == 0, output
    assert made(output) == LOST
    assert_as_undisturbed(project, undisturbed)


def asks_for_a_gpu(job):
    return bool(re.search(r"\bgpu:1$", job.get("TresPerJob", "")))


def overlapping(jobs):
    """Pairs of jobs of which one started before the other had ended; SLURM tells whole seconds."""
    jobs = sorted(jobs, key=lambda job: job["StartTime"])
    return [
        (one["Comment"], other["Comment"])
        for i, one in enumerate(jobs)
        for other in jobs[i + 1 :]
        if other["StartTime"] < one["EndTime"]
    ]


def test_jobs_ask_for_what_the_rules_say(undisturbed):
    jobs = {job["Comment"].split("_wildcards_")[0]: job for job in undisturbed.jobs if "Comment" in job}
    assert set(jobs) == {f"rule_{rule}" for rule in (*ON_THE_GPU, "allocate", "score", "tables")}
    generate, tables = jobs["rule_generate"], jobs["rule_tables"]
    assert (generate["MinMemoryNode"], generate["TimeLimit"], generate["NumCPUs"]) == ("4000M", "08:00:00", "1")
    assert (tables["MinMemoryNode"], tables["TimeLimit"]) == ("2000M", "01:00:00")
    for rule, job in jobs.items():
        assert job["JobState"] == "COMPLETED"
        assert asks_for_a_gpu(job) == (rule.removeprefix("rule_") in ON_THE_GPU)


def test_jobs_on_the_gpu_run_one_at_a_time_and_measuring_alone(undisturbed):
    gpu = [job for job in undisturbed.jobs if asks_for_a_gpu(job) and "Comment" in job]
    assert len(gpu) == 2 * len(ON_THE_GPU) and overlapping(gpu) == []
    ended = sorted(job["EndTime"] for job in gpu)
    assert any(job["SubmitTime"] < end <= job["StartTime"] for job in gpu for end in ended)  # one had to wait
    for pair in overlapping(job for job in undisturbed.jobs if "Comment" in job):
        assert "measure" not in " ".join(pair)


def test_a_cancelled_job_is_tried_again(robbed, undisturbed, slurm):
    with Run(robbed, slurm) as running:
        cancelled, _ = generating(robbed, slurm)
        slurm.ask("scancel", cancelled)
        code, output = running.wait()
    assert code == 0 and "CANCELLED" in output, output
    assert made(output) == LOST
    assert_as_undisturbed(robbed, undisturbed)


def test_a_job_that_takes_more_memory_than_it_asked_for(robbed, undisturbed, slurm):
    code, output = run(robbed, slurm, mem_mb=300)
    assert code != 0 and "Generate images" in output and "Write the tables" not in output, output
    assert not robbed.path(f"{IMAGES}/manifest.json").exists()
    assert_the_rest_is_made(robbed, undisturbed, slurm)


def test_a_job_that_hangs_until_its_time_is_over(robbed, undisturbed, slurm):
    with Run(robbed, slurm, runtime=2) as running:
        hanging, process = generating(robbed, slurm)
        process.suspend()
        code, output = running.wait()
    assert {job["JobId"]: job["JobState"] for job in slurm.jobs()}[hanging] == "TIMEOUT"
    assert code == 0 and "TIMEOUT" in output, output  # generating is tried again
    assert made(output) == LOST
    assert_as_undisturbed(robbed, undisturbed)


def test_an_outage_of_the_controller(robbed, undisturbed, slurm):
    with Run(robbed, slurm) as running:
        generating(robbed, slurm)
        slurm.stop_controller()
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(75)  # longer than the plugin's own five questions, after which it forgets its jobs
        slurm.start_controller()
        code, output = running.wait()
    assert code == 0 and made(output) == LOST, output
    assert_as_undisturbed(robbed, undisturbed)


def test_snakemake_is_killed(robbed, undisturbed, slurm):
    with Run(robbed, slurm) as running:
        generating(robbed, slurm)
    _, output = running.wait()  # killed
    name = re.search(r"SLURM run ID: (\S+)", output)[1]
    assert slurm.job_of("generate", "RUNNING")  # its jobs go on, ...
    refused = run(robbed, slurm)
    assert refused[0] != 0 and "--unlock" in refused[1]
    slurm.ask("scancel", f"--name={name}")  # ... until the documentation's two commands
    slurm.wait_for(lambda: not slurm.ask("squeue", "-h", f"--name={name}"), "end of the job")
    assert robbed.snakemake("--unlock", experiment=EXPERIMENT).returncode == 0
    assert_the_rest_is_made(robbed, undisturbed, slurm)
