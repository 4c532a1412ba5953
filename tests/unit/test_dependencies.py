"""The module closure that rules take as input contains all modules that a script imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantwatt.jobs import dependencies
from quantwatt.jobs.dependencies import SCRIPTS, closure

SCRIPT_NAMES = sorted(path.name for path in SCRIPTS.glob("*.py"))
OTHER_PROGRAMS = sorted(str(path.relative_to(SCRIPTS)) for folder in ("benchmarks", "tools")
                        for path in (SCRIPTS / folder).glob("*.py"))  # fmt: skip

# Import programs and everything their functions import lazily, and list the package's modules that were loaded: each in
# a fork of one process that has the libraries which ask no hub.
PROBE = """
import ast, importlib, json, os, sys
from pathlib import Path

def probe(folder, name):
    importlib.import_module(name.removesuffix(".py").replace("/", "."))
    asks_a_hub = "huggingface_hub" in sys.modules
    tree = ast.parse(Path(folder, name).read_text())
    of_types = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    tree.body = [node for node in tree.body if node not in of_types]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "quantwatt":
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
    files = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "quantwatt" and m.__file__]
    print(json.dumps([name, files, asks_a_hub]), flush=True)

folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
for library in ("torch", "scipy.stats", "pandas", "matplotlib.figure", "skimage.metrics", "jsonschema", "yaml"):
    importlib.import_module(library)
assert "huggingface_hub" not in sys.modules
for name in names:
    if os.fork() == 0:
        probe(folder, name)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def probed():
    """{program: ({file of the package that it loads}, whether it asks a hub before command.run can keep it off)}."""
    command = [sys.executable, "-c", PROBE, str(SCRIPTS), *SCRIPT_NAMES, *OTHER_PROGRAMS]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    lines = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    return {name: (set(files), asks_a_hub) for name, files, asks_a_hub in lines}


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_closure_covers_every_module_a_script_loads(probed, name):
    loaded = {path for path in map(Path, probed[name][0]) if dependencies.is_hashed(path)}
    assert loaded and loaded <= set(closure(name))


@pytest.mark.parametrize("name", [*SCRIPT_NAMES, *OTHER_PROGRAMS])
def test_no_program_asks_a_hub_before_it_runs(probed, name):
    _, asks_a_hub = probed[name]
    assert not asks_a_hub  # else command.run is too late to keep it from the network


def test_c_sources_belong_to_their_package():
    names = {path.name for path in closure("generate.py", ["kernels/unpacked"])}
    assert {"fused.py", "fused.c", "int8.c", "int8_path.h"} <= names


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
