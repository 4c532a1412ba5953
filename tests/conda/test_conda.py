"""The smoke experiment with --sdm conda: every job in its rule's environment, Snakemake in one without their packages.

It takes the conda of this machine where that reaches conda-forge, and else py-rattler in its place, with a channel that
holds the Python that runs this. Packages of pip sections come from where pip's configuration says.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib import metadata, util
from pathlib import Path

import channel
import pytest
import yaml
from workflow.conftest import copy_of_the_tree

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = {
    "base": {"allocate.py", "reference.py", "tables.py", "figure.py", "report.py", "study.py"},
    "torch": {"model.py", "fetch_weights.py", "calibrate.py", "quantize.py", "generate.py", "measure.py",
              "features.py", "score.py"},
}  # fmt: skip
OTHER_TQDM = "4.67.1"  # than that of the environments: one is given it in the tests' copy of the project
BARE = "channels: [conda-forge]\ndependencies: [python=3.11, pip]\n"
# Put into every environment: each start of its Python leaves a line.
SITECUSTOMIZE = """
import json, sys
from importlib import metadata
versions = {{own.name: own.version for name in ("torch", "tqdm") for own in metadata.distributions(name=name)}}
with open({starts!r}, "a") as file:
    file.write(json.dumps({{"arguments": sys.orig_argv, "prefix": sys.prefix, "versions": versions}}) + "\\n")
"""


def run(command, **options):
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


def virtual_environment(folder, *packages):
    """The Python of a new virtual environment that holds packages and what these require."""
    run([sys.executable, "-m", "venv", folder])
    run([folder / "bin/pip", "install", "--quiet", *packages])
    return folder / "bin/python"


def reaches_conda_forge():
    """Whether there is a conda whose conda-forge has the environments' Python."""
    command = ["conda", "search", "--override-channels", "--channel", "conda-forge", "python=3.11"]
    return bool(shutil.which("conda")) and subprocess.run(command, capture_output=True, timeout=300).returncode == 0


def stand_in(folder):
    """Variables of a shell in which `conda` is py-rattler's stand-in."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("without conda, only Python 3.11 can be put into the environments by Python 3.11")
    warnings.warn("no conda that reaches conda-forge: py-rattler stands in for it", stacklevel=2)
    home = folder / "conda"
    python = virtual_environment(home, "--requirement", HERE / "requirements.txt")
    (home / "bin/conda").write_text(f'#!/bin/sh\nexec {python} {HERE}/rattler_conda.py "$@"\n')
    (home / "bin/conda").chmod(0o755)
    shutil.copyfile(HERE / "activate", home / "bin/activate")
    channel.make(folder / "channels/conda-forge", folder / "staging", home / "bin/patchelf")
    own = {"CONDA_CHANNEL_ALIAS": (folder / "channels").as_uri(), "RATTLER_CACHE_DIR": str(folder / "cache")}
    return own | {"PATH": f"{home}/bin:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Variables of a shell in which conda's base environment is active, as it is after `conda init`."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    if not reaches_conda_forge():
        variables |= stand_in(tmp_path_factory.mktemp("stand-in"))
    base = json.loads(run(["conda", "info", "--json"], env=variables))["conda_prefix"]
    return variables | {"CONDA_SHLVL": "1", "CONDA_PREFIX": base, "PATH": f"{base}/bin:{variables['PATH']}"}


@pytest.fixture(scope="module")
def snakemake(tmp_path_factory):
    """The Python of an environment that holds Snakemake and what it requires."""
    folder = tmp_path_factory.mktemp("snakemake") / "venv"
    return virtual_environment(folder, "snakemake", "--constraint", ROOT / "envs/requirements.txt")


def command(python, *arguments):
    settings = ["--configfile", "tests/workflow/quick.yaml", "--config", "experiment=smoke"]
    return [python, "-m", "snakemake", "--sdm", "conda", "--cores", "all", *arguments, *settings]


def environments(project):
    """{name of a file in envs/: prefix of the environment that was made from it}."""
    contents = {path.read_text(): path.stem for path in project.path("envs").glob("*.yaml")}
    made = project.path(".snakemake/conda").glob("*.yaml")
    return {contents[path.read_text()]: path.with_suffix("") for path in made}


@pytest.fixture(scope="module")
def finished(shell, snakemake, tmp_path_factory):
    """The project after a whole run, with the starts of its environments' Pythons."""
    project = copy_of_the_tree(tmp_path_factory.mktemp("project"))
    base = project.path("envs/base.yaml")
    base.write_text(re.sub(r"tqdm==\S+", f"tqdm=={OTHER_TQDM}", base.read_text()))
    run(command(snakemake, "--conda-create-envs-only"), cwd=project.folder, env=shell)
    starts = project.path("starts.jsonl")
    for prefix in environments(project).values():
        (site,) = prefix.glob("lib/python3.11/site-packages")
        (site / "sitecustomize.py").write_text(SITECUSTOMIZE.format(starts=str(starts)))
    run(command(snakemake), cwd=project.folder, env=shell)
    project.starts = [json.loads(line) for line in starts.read_text().splitlines()]
    yield project
    shutil.rmtree(project.path(".snakemake/conda"))


def test_snakemake_holds_none_of_the_environments_packages(snakemake):
    listed = json.loads(run([snakemake, "-m", "pip", "list", "--format", "json"]))
    held = {package["name"].lower() for package in listed}
    assert "snakemake" in held and not held & {"torch", "numpy", "pandas", "scipy", "matplotlib", "safetensors", "tqdm"}


def test_every_job_runs_in_the_environment_of_its_rule(finished):
    ran = {name: set() for name in SCRIPTS}
    names = {str(prefix): name for name, prefix in environments(finished).items()}
    assert set(names.values()) == set(SCRIPTS)
    for start in finished.starts:
        assert Path(start["prefix"]).parent == finished.path(".snakemake/conda"), start
        scripts = [word for word in start["arguments"][1:2] if word.startswith("workflow_scripts/")]
        ran[names[start["prefix"]]].update(Path(script).name for script in scripts)
    assert ran == SCRIPTS


def test_versions_differ_between_the_environments(finished):
    names = {str(prefix): name for name, prefix in environments(finished).items()}
    seen = {name: {json.dumps(start["versions"]) for start in finished.starts if names[start["prefix"]] == name}
            for name in SCRIPTS}  # fmt: skip
    versions = {name: json.loads(*own) for name, own in seen.items()}  # one each
    pins = yaml.safe_load(finished.path("envs/torch.yaml").read_text())["dependencies"][-1]["pip"]
    torch, tqdm = (next(pin for pin in pins if pin.startswith(f"{name}==")) for name in ("torch", "tqdm"))
    assert versions["base"] == {"tqdm": OTHER_TQDM} and tqdm == f"tqdm=={versions['torch']['tqdm']}" != OTHER_TQDM
    assert versions["torch"]["torch"].split("+")[0] == torch.removeprefix("torch==")  # 2.13.0+cpu is 2.13.0


def test_the_experiment_comes_to_its_end(finished):
    assert finished.path("results/smoke/report.html").exists()
    assert [row["status"] for row in finished.table("smoke", "summary")] == ["ok"] * 3


def test_nothing_is_left_to_do(finished, snakemake, shell):
    assert "Nothing to be done" in run(command(snakemake, "-n"), cwd=finished.folder, env=shell)


def test_a_bare_environment_fails_to_import(finished, shell):
    """Even under a Snakemake beside which everything is installed."""
    assert util.find_spec("pandas") and metadata.version("snakemake")
    finished.path("envs/base.yaml").write_text(BARE)
    tables = ["--force", "results/smoke/tables/summary.csv", "--rerun-triggers", "mtime"]
    done = subprocess.run(
        command(sys.executable, *tables), cwd=finished.folder, env=shell, text=True, capture_output=True
    )
    assert done.returncode != 0 and re.search("ModuleNotFoundError: No module named '(numpy|pandas)'", done.stderr)
