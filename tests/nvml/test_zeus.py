"""Another program's joules of the same GPU: Zeus (the PyPI package `zeus`) over the fake NVML, on the real clock.

Zeus reads the energy counter where the architecture has one (Volta and newer), else it polls the power and integrates
what changed.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantwatt.measuring.meters.nvml_boards import ALLOCATIONS

HERE = Path(__file__).parent
PUBLICATION_S, PEAK_W = 0.1, 600  # of the fake GPU

pytest.importorskip("pynvml")
pytestmark = [
    pytest.mark.skipif(not shutil.which("gcc"), reason="gcc compiles the fake NVML"),
    pytest.mark.skipif(importlib.util.find_spec("zeus") is None, reason="zeus is not installed (pip install zeus)"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    command = ["gcc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", HERE / "fakenvml.c"]
    subprocess.run(command, check=True)
    return folder


def measure(library, seconds, **fake):
    """What measure_zeus.py prints; further keywords are the library's environment, FAKE_NVML_*."""
    environment = {key: value for key, value in os.environ.items() if key not in ALLOCATIONS}
    environment |= {f"FAKE_NVML_{key.upper()}": str(value) for key, value in fake.items()}
    environment |= {"LD_LIBRARY_PATH": str(library), "PYTHONPATH": str(HERE.parents[1] / "workflow_scripts")}
    run = subprocess.run(
        [sys.executable, HERE / "measure_zeus.py", str(seconds)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    return json.loads(run.stdout.splitlines()[-1])


def test_of_a_varying_load_both_read_the_same_joules_from_the_counter(library):
    found = measure(library, 4.5)
    assert not found["zeus_polls"]
    # Ours begins just before and ends just after: at each end the counter may have moved once more.
    once = PUBLICATION_S * PEAK_W
    around_s = found["seconds"] - found["zeus_s"]
    assert found["zeus_j"] > 2020 and 0 <= found["energy_j"] - found["zeus_j"] <= 2 * once + around_s * PEAK_W


def test_of_a_flat_load_without_a_counter_zeus_reads_nothing_and_we_the_power_times_the_time(library):
    found = measure(library, 2, fault="no-counter", const_w=70)
    assert found["zeus_polls"] and found["source"].startswith("energy: integral of the power (no counter)")
    assert found["energy_j"] == pytest.approx(70 * found["seconds"], rel=1e-3)
    assert found["zeus_j"] < 0.5 * 70 * found["zeus_s"]  # it drops every reading that equals the one before
