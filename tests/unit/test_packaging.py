"""pyproject.toml: an editable installation for notebooks, and dependencies that agree with the pinned versions."""

import ast
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import quantwatt

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Imported where they are installed only: libraries of environments of their own, and what PyTorch's CUDA build brings.
PEERS = {"DISTS_pytorch", "auto_gptq", "brevitas", "flip_evaluator", "gptqmodel", "prdc", "pytorch_msssim"}
OPTIONAL = PEERS | {"amdsmi", "mkdocs", "rattler", "triton"}
# No module of ours imports them: transformers and diffusers do, for the tokenizers of text encoders.
INDIRECT = {"ftfy", "protobuf", "sentencepiece"}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The Python of an environment where a copy of the project is installed editable, and the copy.

    The environment finds the packages of the one that runs the tests.
    """
    folder = tmp_path_factory.mktemp("installed")
    copy, environment = folder / "project", folder / "environment"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "workflow_scripts", copy / "workflow_scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "resources").symlink_to(ROOT / "resources")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = environment / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    python = environment / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--editable", copy]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True, env=alone())
    return python, copy


def alone():
    """The environment's variables without a PYTHONPATH that would find the project."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_a_notebook_anywhere_measures_and_loads_after_an_editable_installation(elsewhere, tmp_path):
    python, copy = elsewhere
    model = {"family": "distilbert", "path": "resources/models/tiny-distilbert", "dtype": "float32"}
    details = {"status": "ok", "model_settings": model, "location": model["path"], "files": {}, "layers": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(details))
    cells = """
from quantwatt import load_pipeline, measure, open_meter
import quantwatt

short = dict(warmup_s=0, limit_s=0.1, block_s=0.1, blocks=2, idle_s=0)
figure = measure(lambda: sum(range(10_000)), meter="none", **short)
assert figure.latency_s["median"] > 0 and figure.energy_j is None
load_pipeline(".")
assert callable(measure)  # loading imports the room of the same name
print(quantwatt.__file__, quantwatt.__version__)
"""
    done = subprocess.run([python, "-c", cells], cwd=tmp_path, env=alone(), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(copy / "workflow_scripts/quantwatt/__init__.py"), quantwatt.__version__]


def test_an_installation_without_the_projects_folder_says_what_to_do(tmp_path):
    (tmp_path / "quantwatt").mkdir()
    shutil.copy(quantwatt.__file__, tmp_path / "quantwatt")
    command = [sys.executable, "-c", "from quantwatt import measure"]
    done = subprocess.run(command, cwd=tmp_path, env=alone(), text=True, capture_output=True)
    assert done.returncode == 1
    assert "pip install --editable" in done.stderr.splitlines()[-1]


def test_the_package_holds_every_module_and_what_is_compiled_from_it(elsewhere, tmp_path):
    _, copy = elsewhere
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, copy]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    [wheel] = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "workflow_scripts/quantwatt").rglob("*.*") if path.suffix in (".py", ".c", ".h")]
    assert held == {path.relative_to(ROOT / "workflow_scripts").as_posix() for path in files}
    assert any(name.endswith(".c") for name in held)


def imported(folder):
    """Names of the distributions whose packages are imported in a folder's modules."""
    owners = importlib.metadata.packages_distributions()
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.split(".")[0])
    ours = {path.stem for root in ("workflow_scripts", "tests") for path in (ROOT / root).rglob("*")}
    unknown = names - owners.keys() - set(sys.stdlib_module_names) - ours - OPTIONAL
    assert not unknown, f"imported, and neither ours nor installed: {unknown}"
    return {canonicalize_name(owners[name][0]) for name in names & owners.keys() - OPTIONAL} - {"quantwatt"}


def declared(lines):
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_dependencies_are_what_the_package_imports():
    assert declared(PROJECT["dependencies"]) - INDIRECT == imported(ROOT / "workflow_scripts" / "quantwatt")


def test_extras_name_what_scripts_and_tests_import():
    lines = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
    assert imported(ROOT / "workflow_scripts") | imported(ROOT / "tests") <= declared(lines)


def test_extras_name_what_make_lint_runs():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    extras, scripts = PROJECT["optional-dependencies"], importlib.metadata.entry_points(group="console_scripts")
    programs = set(re.findall(r"BIN\)/([\w-]+)", recipe))
    assert len(programs) >= 4
    for program in programs:
        owners = {entry.dist.name for entry in scripts.select(name=program)} or {program}
        assert {canonicalize_name(name) for name in owners} <= declared(extras["lint"] + extras["workflow"]), program


def test_every_range_holds_the_release_that_is_pinned_and_tested():
    pins = {}
    for line in (ROOT / "envs/requirements.txt").read_text().splitlines():
        if "==" in line and not line.startswith("#"):
            name, version = line.split(";")[0].split("==")
            pins[canonicalize_name(name)] = version.strip()
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    ranges = [Requirement(line) for line in itertools.chain(*groups) if not line.startswith("quantwatt[")]
    assert len(ranges) > 30
    for requirement in ranges:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_one_version_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1]
    assert cited == newest == quantwatt.__version__


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_run_what_there_is_by_actions_that_cannot_change(path):
    text = path.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for job in yaml.safe_load(text)["jobs"].values():
        for step in job["steps"]:
            if "run" in step:
                target = re.search(r"\bmake ([\w-]+)", step["run"])
                assert re.search(rf"^{target[1]}:", makefile, flags=re.M) if target else step["run"] == "bash .ci/run"
        versions = job.get("strategy", {}).get("matrix", {}).get("python", ["3.11"])
        assert all(Version(version) in SpecifierSet(PROJECT["requires-python"]) for version in versions)
    for action in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v[\d.]+", action), f"{action}: not pinned to a commit"


def test_commits_are_checked_by_the_pinned_programs():
    entries = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pinned = (ROOT / "envs/requirements.txt").read_text().splitlines()
    local = [hook["entry"].split()[0] for repo in entries if repo["repo"] == "local" for hook in repo["hooks"]]
    assert set(local) == {".venv/bin/ruff", ".venv/bin/snakefmt"}
    assert all(any(line.startswith(f"{Path(program).name}==") for line in pinned) for program in local)
