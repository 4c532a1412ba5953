"""A copy of the project in which the smoke experiment has been run once, for all workflow tests."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest

from quantwatt.jobs import dependencies

ROOT = Path(__file__).parents[2]
SECRET = "correct-horse"  # in the environment of every run, and of no output: test_faults.py looks for it
# Of a run: tests of other workers are neighbours, and threads that wait for each other on one core take minutes.
CORES = str(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))))
SECRETS = {"HF_TOKEN": f"hf_{SECRET}", "https_proxy": f"http://me:{SECRET}@127.0.0.1:1"}  # nobody answers there


class Project:
    """A copy of the working tree, with its own git repository and results."""

    def __init__(self, folder):
        self.folder = folder

    def snakemake(self, *arguments, experiment="smoke", python=None):
        """Run Snakemake there as a user would; returns the finished process, its output in `stdout`.

        The first argument is an option, because --config takes every plain word after it.

        Args:
            python: what runs the jobs, by default that of preloaded.jobs().
        """
        runs = {} if "-n" in arguments else {"QUANTWATT_PYTHON": str((python or preloaded.jobs().python).parent)}
        with self.start(*arguments, experiment=experiment, python=preloaded.snakemake().python, **runs) as process:
            output, _ = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def start(self, *arguments, experiment="smoke", python=sys.executable, options=None, **variables):
        """The same by the real interpreter, jobs' too, and not waited for; `options` of subprocess.Popen."""
        command = [python, "-m", "snakemake", "--configfile", "tests/workflow/quick.yaml"]
        command += ["--config", f"experiment={experiment}", *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env=os.environ | SECRETS | variables, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, **(options or {}),
        )  # fmt: skip

    def plan(self, *targets, experiment="smoke", settings=()):
        """Messages of the jobs that a dry run plans, the target rule left out; a set of strings.

        Args:
            settings: further words of --config.
        """
        done = self.snakemake(*settings, "-n", *targets, experiment=experiment)
        assert done.returncode == 0, done.stdout
        return set(re.findall(r"^Job \d+: (.*)$", done.stdout, flags=re.MULTILINE))

    def git(self, *arguments):
        subprocess.run(["git", *arguments], cwd=self.folder, check=True, capture_output=True)

    def commit(self):
        """Make the tree as it is the one that `restore` goes back to."""
        self.git("add", "--all")
        self.git("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "all")

    def copy(self, folder):
        """The same with its results in another folder, where these may be broken; returns the Project there."""
        subprocess.run(["cp", "--archive", "--reflink=auto", self.folder, folder], check=True)
        return Project(folder)

    def path(self, name):
        return self.folder / name

    def table(self, experiment, name):
        """The rows of one of an experiment's tables; a list of {column: text}."""
        with self.path(f"results/{experiment}/tables/{name}.csv").open() as file:
            return list(csv.DictReader(file))

    def replace(self, name, old, new):
        """Replace a text that stands in a file exactly once."""
        text = self.path(name).read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
        self.path(name).write_text(text.replace(old, new))

    def restore(self):
        """Undo every change to tracked files."""
        self.git("checkout", "--quiet", "--force", "main")
        self.git("clean", "--quiet", "--force", "-d")


def copy_of_the_tree(folder):
    """The files that git knows or would take, and what Python and planning remember of them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    kept = [path.relative_to(ROOT) for path in (ROOT / "workflow_scripts").rglob("*.pyc")]
    for name in (*filter(None, listed.split("\0")), *kept, dependencies.SOURCES):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)  # with its time, by which Python knows the source of a .pyc
    project = Project(folder)
    project.git("init", "--quiet", "--initial-branch", "main")
    project.commit()
    return project


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The project after one whole run of the smoke experiment, in which each script has been started for real once."""
    project = copy_of_the_tree(tmp_path_factory.mktemp("project"))
    done = project.snakemake("--cores", CORES, python=preloaded.jobs().first_real)
    assert done.returncode == 0, done.stdout
    project.output = done.stdout
    return project


@pytest.fixture
def project(finished):
    """The finished project, restored after the test."""
    yield finished
    finished.restore()
