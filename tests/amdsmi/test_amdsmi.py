"""The meter of AMD's GPUs over the real package amdsmi and a library whose joules are known (fakeamdsmi.c)."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantwatt.measuring.meters.amdsmi import ALLOCATIONS

HERE = Path(__file__).parent
PACKAGE = importlib.util.find_spec("amdsmi")
pytestmark = [
    pytest.mark.skipif(not shutil.which("gcc"), reason="gcc compiles the fake library"),
    pytest.mark.skipif(PACKAGE is None, reason="amdsmi is not installed (pip install amdsmi)"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A folder with a libamd_smi.so that has every function that the package asks for."""
    folder = tmp_path_factory.mktemp("library")
    wrapper = Path(PACKAGE.origin).with_name("amdsmi_wrapper.py").read_text()
    source = (HERE / "fakeamdsmi.c").read_text()
    asked = set(re.findall(r"_libraries\['libamd_smi\.so'\]\.(\w+)", wrapper))
    others = sorted(asked - set(re.findall(r"^int (\w+)\(", source, re.MULTILINE)))
    (folder / "others.c").write_text("\n".join(f"int {name}(void) {{ return 2; }}" for name in others))
    command = ["gcc", "-shared", "-fPIC", "-o", folder / "libamd_smi.so", HERE / "fakeamdsmi.c", folder / "others.c"]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def amd(library):
    """Measure the fake GPU; keywords are the library's environment, FAKE_AMD_*."""

    def run(settings=None, visible=None, folder=library, **fake):
        environment = {key: value for key, value in os.environ.items() if key not in (*ALLOCATIONS, "ROCM_HOME")}
        environment |= {f"FAKE_AMD_{key.upper()}": str(value) for key, value in fake.items()}
        environment |= {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(HERE.parents[1] / "workflow_scripts")}
        environment |= {"HIP_VISIBLE_DEVICES": visible} if visible is not None else {}
        command = [sys.executable, HERE / "measure_fake_amd.py", json.dumps(settings or {}), "0.4"]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_the_counter_gives_the_joules_and_the_power_agrees(amd):
    found = amd()
    assert found["energy_j"] == pytest.approx(300 * found["seconds"], rel=0.02) and found["watts"] == 300
    assert found["source"] == "energy: energy_accumulator; power: current_socket_power" and found["fault"] is None
    board = found["provenance"]
    assert board["fake"] is True and board["name"] == "FAKE Instinct" and board["driver"] == "9.9.9-FAKE"
    assert (board["power_limit_w"], board["temperature_c"], board["driver_memory_mb"]) == (750, 51, 2000)
    uuid = "fa4e74a1-0000-1000-8000-000000000001"
    assert board["uuid_hash"] == hashlib.sha256(uuid.encode()).hexdigest()[:16] and uuid not in json.dumps(found)
    assert found["processes"] == [71]


@pytest.mark.parametrize(
    ("fault", "source"),
    [
        ("no-counter", "energy: integral of the power (no counter); power: current_socket_power"),
        ("no-current", "energy: energy_accumulator; power: average_socket_power"),
    ],
)
def test_what_a_board_lacks_is_read_otherwise_and_told(amd, fault, source):
    found = amd(fault=fault)
    assert found["source"] == source and found["energy_j"] == pytest.approx(300 * found["seconds"], rel=0.02)


@pytest.mark.parametrize(
    ("settings", "visible", "watts"),
    [
        ({"gpus": "all"}, None, 900),
        ({}, "1", 600),
        ({}, "GPU-fa4e74a1000010008000000000000002", 600),
        ({"gpu": "0000:41:00.0"}, None, 300),
        ({}, "1,0", 600),
    ],
)
def test_the_gpu_of_this_program_is_read(amd, settings, visible, watts):
    found = amd(settings, visible, count=2)
    assert found["watts"] == watts and found["energy_j"] == pytest.approx(watts * found["seconds"], rel=0.02)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"fault": "no-driver"},
            "AMD SMI does not start (AMDSMI_STATUS_DRIVER_NOT_LOADED - Driver not loaded): install",
        ),
        ({"fault": "denied"}, "AMD SMI cannot read the GPU (AMDSMI_STATUS_NO_PERM - Permission Denied): check"),
        ({"fault": "nothing"}, "this GPU's driver reports neither energy nor power: choose the meter none."),
        ({"count": 0}, "AMD SMI sees no GPU that this program may use: choose rapl, estimate or none."),
        ({"count": 2}, "there are 2 GPUs: set HIP_VISIBLE_DEVICES to the one to measure."),
        ({"visible": "7"}, "no GPU is allocated: HIP_VISIBLE_DEVICES '7' names none of the 1 that AMD SMI sees."),
        ({"folder": "/"}, "the package amdsmi finds no libamd_smi.so of its version (KeyError): install ROCm"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(amd, given, sentence):
    assert amd(**given)["unavailable"].startswith(sentence)
