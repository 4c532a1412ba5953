"""The conda environments, the requirements and the rules agree."""

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
RULES = [path for path in sorted((ROOT / "rules").glob("*.smk")) if path.name != "common.smk"]


def requirements():
    lines = (ROOT / "envs/requirements.txt").read_text().splitlines()
    return dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda path: path.stem)
def test_pins_agree_with_the_requirements(path):
    environment = yaml.safe_load(path.read_text())
    *conda, last = environment["dependencies"]
    assert conda == ["python=3.11", "pip"] and environment["channels"] == ["conda-forge"]
    pinned = requirements()
    for line in last["pip"]:
        name, version = line.lower().replace("_", "-").split("==")
        assert pinned[name] == version, f"{path.name}: {line}"


def test_every_rule_names_an_environment_that_exists_and_every_environment_is_used():
    used = set()
    for path in RULES:
        rules = re.findall(r"^rule (\w+):\n((?:    .*\n|\n)*)", path.read_text(), flags=re.MULTILINE)
        assert rules
        for name, body in rules:
            found = re.search(r'conda:\n\s+"\.\./envs/(\w+)\.yaml"', body)
            assert found, f"rule {name} names no environment"
            used.add(found[1])
    assert used == {path.stem for path in ENVIRONMENTS}


def test_no_script_hides_an_installed_module():
    """Python puts a script's folder first on its path: `tabulate.py` there would stand for the package tabulate."""
    scripts = {path.stem for path in (ROOT / "workflow_scripts").glob("*.py")}
    site = [Path(folder) for folder in sys.path if folder.endswith("site-packages")]
    installed = {path.stem for folder in site for path in folder.iterdir()} | set(sys.stdlib_module_names)
    assert not scripts & installed
