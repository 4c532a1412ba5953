"""Peak memory of quantizing and loading, measured in separate processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(what held_memory.py prints, the folder of its checkpoints)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1] / "workflow_scripts"),
                   "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # fmt: skip
    folder = tmp_path_factory.mktemp("checkpoints")
    command = [sys.executable, HERE / "held_memory.py", folder]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), folder


@pytest.mark.parametrize("solver", ["gptq", "qronos"])
def test_quantizing_does_not_hold_more_for_a_deeper_model(found, solver):
    """Three more blocks leave the peak beside the model and the result where it was."""
    shallow, deep = found[0]["quantizing"][solver]
    assert deep["result_mb"] > 2.5 * shallow["result_mb"]
    assert deep["peak_mb"] < 1.12 * shallow["peak_mb"]  # one block's Hessians alone are a tenth of it


def test_loading_takes_the_checkpoints_own_size_and_one_layer(found):
    """Of 114 MB of float32 weights in 4 bits; a layer may take twice what it does in float32."""
    loading, folder = found[0]["loading"], found[1]
    assert loading["float_mb"] > 110 > 4 * loading["own_mb"]
    assert loading["peak_mb"] < loading["own_mb"] + 2 * loading["largest_mb"] < 35
    assert len(list((folder / "large").glob("weights-*-of-*.safetensors"))) > 3
