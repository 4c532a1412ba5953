"""The conda environments, the requirements files and the rules agree."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from quantwatt import registry
from quantwatt.artifacts import layout
from quantwatt.config import slices
from quantwatt.jobs.dependencies import SCRIPTS, closure

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


# Modules whose distribution has another name, or comes with another that requires it.
DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "cleanfid": "clean-fid",
                 "open_clip": "open-clip-torch", "optimum": "optimum-quanto", "pynvml": "nvidia-ml-py",
                 "huggingface_hub": "diffusers", "triton": "torch", "yaml": "pyyaml"}  # fmt: skip
# What modules import in functions that no script of an environment calls: those of libraries solve layers of integer
# weights alone, those without torch write no tensors; a classifier of digits reads images, and draws none.
WRITING = {"quantwatt/artifacts/manifest.py": {"safetensors"}}
SOLVERS = {f"quantwatt/quantize/solvers/{name.replace('-', '_')}.py": {name} for name in ("auto-gptq", "gptqmodel")}
FORMATS = {"quantwatt/formats/bitsandbytes_int8.py": {"bitsandbytes"},
           "quantwatt/formats/quanto.py": {"optimum-quanto"}}  # fmt: skip
BLOCKS = {"quantwatt/models/architecture.py": {"diffusers"}, "quantwatt/quantize/streams.py": {"greenlet"}}
NOT_CALLED = {
    "auto-gptq": FORMATS | BLOCKS | {"quantwatt/formats/torchao.py": {"torchao"}}
    | {"quantwatt/quantize/solvers/gptqmodel.py": {"gptqmodel"}},
    "base": WRITING | {"quantwatt/artifacts/shards.py": {"diffusers", "safetensors"}},  # names of files alone
    "gptqmodel": FORMATS | BLOCKS | {"quantwatt/quantize/solvers/auto_gptq.py": {"auto-gptq"}},
    "torch": SOLVERS | {"quantwatt/data/digits.py": {"scikit-learn"},
                        "quantwatt/measuring/meters/amdsmi.py": {"amdsmi"}},
}  # fmt: skip


def imported(path):
    """(modules that importing the file needs, modules that its functions import)."""
    loaded, called = set(), set()
    tree = ast.parse(path.read_text())
    # What a type checker alone imports is never run.
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING:")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module.split(".")[0]}
        else:
            continue
        if node in tree.body:
            loaded |= names
        else:
            called |= names
    return loaded, called - loaded


def plugins_in(kind):
    """Modules of a kind of plugin."""
    folder = SCRIPTS.joinpath("quantwatt", *registry.PACKAGES[kind].split("."))
    return [path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]


def modules_of(rule):
    """Every module that a rule's script may load: its closure, with each plugin that it may be given."""
    kinds = slices.PLUGINS.get(rule, ())
    return closure(slices.script(rule), [f"{kind}/{path.stem}" for kind in kinds for path in plugins_in(kind)])


def environments_of_rules():
    """(environment, rule) of every rule."""
    for path in RULES:
        rules = re.findall(r"^rule (\w+):\n((?:    .*\n|\n)*)", path.read_text(), flags=re.MULTILINE)
        yield from ((environment, name) for name, body in rules for environment in environments_of(body))


def held_by(environment):
    """Names of the distributions that an environment's file pins, or that the script behind it installs."""
    path = ROOT / f"envs/{environment}.yaml"
    pins = yaml.safe_load(path.read_text())["dependencies"][-1]["pip"]
    behind = path.with_suffix(".post-deploy.sh")
    if behind.exists():
        pins += re.findall(r"\S+==\S+", behind.read_text())
    return {pin.split("==")[0].lower().replace("_", "-") for pin in pins}


def test_every_environment_holds_what_its_rules_scripts_import():
    rules = set(environments_of_rules())
    assert {rule for _, rule in rules} == layout.JOBS.keys() - {
        "generate_part",
        "quantize_apart",
        "calibrate_component",
        "allocate_component",
        "quantize_component",
        "reference_features",
    }  # by `use rule`
    own = {"quantwatt", *sys.stdlib_module_names}
    not_called = {}
    for environment, rule in sorted(rules):
        held = held_by(environment)
        for path in modules_of(rule):
            if path.suffix == ".py":
                loaded, called = (
                    {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in names - own} - held
                    for names in imported(path)
                )
                assert not loaded, (environment, rule, path.name)
                if called:
                    not_called.setdefault(environment, {})[str(path.relative_to(SCRIPTS))] = called
    assert not_called == NOT_CALLED


# Runs Snakemake beside nothing but what it requires, and names the files of quantwatt that it loads.
ALONE = """
import importlib.abc, pkgutil, runpy, sys
from importlib import metadata
from packaging.requirements import Requirement


def add(name, found):
    if name not in found:
        found.add(name)
        for requirement in map(Requirement, metadata.requires(name) or []):
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                add(requirement.name.lower().replace("_", "-"), found)
    return found


required = add("snakemake", set())
absent = {
    module for module, names in metadata.packages_distributions().items()
    if module != "quantwatt" and not any(name.lower().replace("_", "-") in required for name in names)
}  # quantwatt itself may be installed or not


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


assert {"torch", "numpy", "pandas"} <= absent
sys.meta_path.insert(0, Absent())
listed = pkgutil.iter_modules  # by which Snakemake finds plugins
pkgutil.iter_modules = lambda *arguments: (found for found in listed(*arguments) if found.name not in absent)
sys.argv[0] = "snakemake"
try:
    runpy.run_module("snakemake", run_name="__main__")
finally:
    print(*[module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "quantwatt"])
"""


def test_snakemake_plans_with_nothing_but_what_it_requires_itself(tmp_path):
    arguments = ["-n", "--config", "experiment=embedded-mixdq", f"results={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", ALONE, *arguments], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    modules = [Path(name) for name in done.stdout.splitlines()[-1].split()]
    loaded = {name for path in modules for name in imported(path)[0]}
    assert loaded - set(sys.stdlib_module_names) == {"quantwatt", "jsonschema", "yaml"}


def test_no_script_hides_an_installed_module():
    """Python puts a script's folder first on its path: `tabulate.py` there would stand for the package tabulate."""
    scripts = {path.stem for path in (ROOT / "workflow_scripts").glob("*.py")}
    site = [Path(folder) for folder in sys.path if folder.endswith("site-packages")]
    installed = {path.stem for folder in site for path in folder.iterdir()} | set(sys.stdlib_module_names)
    assert not scripts & installed
