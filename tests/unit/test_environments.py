"""The conda environments, the requirements and the rules agree."""

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from quantwatt.dependencies import closure

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
RULES = [path for path in sorted((ROOT / "rules").glob("*.smk")) if path.name != "common.smk"]


def requirements():
    lines = (ROOT / "envs/requirements.txt").read_text().splitlines()
    pins = (line.split(";")[0] for line in lines if not line.startswith("#"))
    return dict(pin.lower().replace("_", "-").split("==") for pin in pins)


# Environments that one library has for itself: a script installs it behind the others.
OF_LIBRARIES = [path for path in ENVIRONMENTS if path.with_suffix(".post-deploy.sh").exists()]


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_pins_agree_with_the_requirements(path):
    environment = yaml.safe_load(path.read_text())
    *conda, last = environment["dependencies"]
    assert conda == ["python=3.11", "pip"] and environment["channels"] == ["conda-forge"]
    pinned = requirements()
    for line in last["pip"]:
        name, version = line.lower().replace("_", "-").split("==")
        if path not in OF_LIBRARIES or name == "torch":
            assert pinned[name] == version, f"{path.name}: {line}"


def environments_of(rule):
    """Names in a rule's `conda` directive; one with a wildcard stands for all that its constraint names."""
    found = re.search(r'conda:\n\s+"\.\./envs/([\w-]+|\{backend\})\.yaml"', rule)
    if found and found[1] == "{backend}":
        return re.search(r'backend="([\w|-]+)"', rule)[1].split("|")
    return [found[1]] if found else []


def test_every_rule_names_an_environment_that_exists_and_every_environment_is_used():
    used = set()
    for path in RULES:
        rules = re.findall(r"^rule (\w+):\n((?:    .*\n|\n)*)", path.read_text(), flags=re.MULTILINE)
        assert rules
        for name, body in rules:
            found = environments_of(body)
            assert found, f"rule {name} names no environment"
            used |= set(found)
    assert used == {path.stem for path in ENVIRONMENTS}


# Modules whose distribution has another name.
DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "cleanfid": "clean-fid", "open_clip": "open-clip-torch",
                 "pynvml": "nvidia-ml-py", "huggingface_hub": "diffusers"}  # fmt: skip


def imported_on_load(path):
    """Modules that stand outside functions: what importing the file needs."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("rules", RULES, ids=lambda path: path.stem)
def test_every_environment_holds_what_its_rules_scripts_import(rules):
    own = {"quantwatt", *sys.stdlib_module_names}
    of_rules = [
        (environment, script)
        for rule in re.split(r"^rule ", rules.read_text(), flags=re.MULTILINE)
        for environment in environments_of(rule)
        for script in re.findall(r"workflow_scripts/(\w+\.py)", rule)
    ]
    assert of_rules
    for environment, script in of_rules:
        lines = yaml.safe_load((ROOT / f"envs/{environment}.yaml").read_text())["dependencies"][-1]["pip"]
        held = {line.split("==")[0].lower().replace("_", "-") for line in lines}
        needed = {module for path in closure(script) for module in imported_on_load(path)} - own
        assert {DISTRIBUTIONS.get(name, name).lower() for name in needed} <= held, (environment, script)


def test_no_script_hides_an_installed_module():
    """Python puts a script's folder first on its path: `tabulate.py` there would stand for the package tabulate."""
    scripts = {path.stem for path in (ROOT / "workflow_scripts").glob("*.py")}
    site = [Path(folder) for folder in sys.path if folder.endswith("site-packages")]
    installed = {path.stem for folder in site for path in folder.iterdir()} | set(sys.stdlib_module_names)
    assert not scripts & installed
