"""The module closure that rules take as input covers what a script really imports."""

import json
import shutil
import subprocess
import sys

import pytest

from quantwatt.jobs import dependencies
from quantwatt.jobs.dependencies import SCRIPTS, closure

SCRIPT_NAMES = sorted(path.name for path in SCRIPTS.glob("*.py"))

# Import a script and everything its functions import lazily, then list the package's modules that were loaded.
PROBE = """
import ast, importlib, json, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
tree = ast.parse(Path({path!r}).read_text())
importlib.import_module({name!r})
asks_a_hub = "huggingface_hub" in sys.modules
for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "quantwatt":
        module = importlib.import_module(node.module)
        for alias in node.names:
            if not hasattr(module, alias.name):
                importlib.import_module(f"{{node.module}}.{{alias.name}}")
files = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "quantwatt" and m.__file__]
print(json.dumps([files, asks_a_hub]))
"""


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_closure_covers_every_module_a_script_loads(name):
    code = PROBE.format(folder=str(SCRIPTS), path=str(SCRIPTS / name), name=name.removesuffix(".py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, asks_a_hub = json.loads(done.stdout.splitlines()[-1])
    assert loaded and set(loaded) <= {str(path) for path in closure(name)}
    assert not asks_a_hub or name.startswith("train_")  # else command.run is too late to keep it from the network


def test_c_source_belongs_to_the_module_of_its_name():
    names = {path.name for path in closure("generate.py", ["kernels/unpacked"])}
    assert {"fused.py", "fused.c"} <= names


def test_a_score_does_not_depend_on_quantizing():
    names = {path.name for path in closure("score.py", ["metrics/psnr"])}
    assert "psnr.py" in names and "intervals.py" in names
    assert not names & {"gptq.py", "checkpoint.py", "sequential.py", "fid.py", "protocol.py", "experiment.py"}


def test_plugins_bring_their_own_imports():
    without = set(closure("quantize.py", ["solvers/rtn", "formats/integer"]))
    with_nf4 = set(closure("quantize.py", ["solvers/rtn", "formats/nf4"]))
    assert {path.name for path in with_nf4 - without} == {"nf4.py", "codebook.py"}
    assert {path.name for path in without - with_nf4} == {"integer.py"}


def test_missing_plugin_is_an_error():
    with pytest.raises(FileNotFoundError):
        closure("quantize.py", ["solvers/nothing"])


def test_digest_follows_the_content_of_every_file(tmp_path, monkeypatch):
    def digest():
        for cached in (dependencies.digest, dependencies._sha256, dependencies._local_imports):
            cached.cache_clear()
        return dependencies.digest("score.py", ("metrics/psnr",))

    copy = tmp_path / "workflow_scripts"
    shutil.copytree(SCRIPTS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(dependencies, "SCRIPTS", copy)
    before, changed = digest(), copy / "quantwatt/intervals.py"
    changed.touch()
    (copy / "quantwatt/score/metrics/fid.py").write_text("# another metric\n")
    assert digest() == before
    text = changed.read_text()
    changed.write_text(text + "# changed\n")
    assert digest() != before
    changed.write_text(text)
    assert digest() == before
    monkeypatch.undo()
    digest()  # of the real files again
