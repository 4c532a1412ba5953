"""The NVML meter over the real pynvml and a library whose joules are known (fakenvml.c)."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "workflow_scripts"
PERIOD_J = 2020.0  # of the fake GPU's load, every 4 s
TWO_PERIODS = {"start_s": 8, "block_s": 8, "blocks": 2}  # 32 images a block

pytest.importorskip("pynvml")
pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc compiles the fake NVML")


VARIANTS = {"full": [], "no-fields": ["-DWITHOUT_FIELDS"], "bare": ["-DWITHOUT_FIELDS", "-DWITHOUT_ENERGY"]}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """{variant of the library: a running measure_fake_gpu.py that has loaded it}."""
    running = {}
    for name, options in VARIANTS.items():
        folder = tmp_path_factory.mktemp(name)
        command = [
            "gcc",
            "-shared",
            "-fPIC",
            *options,
            "-o",
            folder / "libnvidia-ml.so.1",
            HERE / "fakenvml.c",
        ]
        subprocess.run(command, check=True)
        environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        environment |= {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(SCRIPTS)}
        running[name] = subprocess.Popen(
            [sys.executable, HERE / "measure_fake_gpu.py"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    yield running
    for process in running.values():
        process.communicate()


@pytest.fixture
def gpu(processes, tmp_path):
    """Measure the fake GPU; further keywords are the library's environment, FAKE_NVML_*."""

    def run(function, arguments, variant="full", visible=None, **fake):
        environment = {f"FAKE_NVML_{key.upper()}": str(value) for key, value in fake.items()}
        if function == "virtual":
            environment["FAKE_NVML_NOW_FILE"] = str(tmp_path / "now")
        if visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = visible
        process = processes[variant]
        print(json.dumps([function, arguments, environment]), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    return run


def test_counter_gives_the_exact_joules_and_the_integral_agrees(gpu):
    result = gpu("virtual", TWO_PERIODS)
    assert [block["energy_j"] for block in result["blocks"]] == pytest.approx([2 * PERIOD_J] * 2, abs=0.002)
    assert [block["integral_j"] for block in result["blocks"]] == pytest.approx([2 * PERIOD_J] * 2, abs=0.02)
    assert result["energy"]["value"] == pytest.approx(PERIOD_J / 16, abs=1e-4)
    assert result["energy"]["mean_w"] == pytest.approx(PERIOD_J / 4, abs=1e-3)
    assert result["crosscheck"]["verdict"] == "ok"
    assert result["device"]["source"] == "energy: field 83, scope 0; power: field 186 (instant), scope 0"


def test_a_short_block_has_the_counters_joules_and_a_warning_that_the_integral_lags(gpu):
    result = gpu("virtual", {"start_s": 8.1, "block_s": 2, "blocks": 1})
    # From 0.1 s to 2.1 s into the load: 25 J and then 1.9 s at 600 W; the held power is 100 ms late.
    assert result["blocks"][0]["energy_j"] == pytest.approx(25 + 1.9 * 600, abs=0.002)
    assert result["blocks"][0]["integral_j"] == pytest.approx(50 + 1.8 * 600, abs=0.02)
    assert result["crosscheck"]["difference"] == pytest.approx(-35 / 1165, abs=1e-4)
    assert result["crosscheck"]["verdict"] == "warn" and not result["blocks"][0]["void"]


def test_the_device_is_recognisably_fake_and_its_uuid_is_hashed(gpu):
    device = gpu("virtual", TWO_PERIODS)["device"]
    uuid = "GPU-fa4e0000-0000-4000-8000-000000000000"
    assert device["fake"] is True and "FAKE" in device["name"]
    assert device["uuid_hash"] == hashlib.sha256(uuid.encode()).hexdigest()[:16]
    assert uuid not in json.dumps(device)
    assert (device["driver"], device["power_limit_w"], device["temperature_c"]) == ("999.99.99-FAKE", 700, 55)


@pytest.mark.parametrize("settings", [{"fault": "no-fields"}, {"variant": "no-fields"}])
def test_without_field_values_the_older_calls_are_used_and_recorded(gpu, settings):
    result = gpu("virtual", TWO_PERIODS, **settings)
    assert result["device"]["source"] == "energy: nvmlDeviceGetTotalEnergyConsumption; power: nvmlDeviceGetPowerUsage"
    assert result["energy"]["value"] == pytest.approx(PERIOD_J / 16, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "power"),
    [
        ({"fault": "no-counter"}, "field 186 (instant), scope 0"),
        ({"variant": "bare"}, "nvmlDeviceGetPowerUsage"),
    ],
)
def test_without_a_counter_the_energy_is_the_integral_and_says_so(gpu, settings, power):
    result = gpu("virtual", TWO_PERIODS, **settings)
    assert result["device"]["source"] == f"energy: integral of the power (no counter); power: {power}"
    assert result["energy"]["value"] == pytest.approx(PERIOD_J / 16, abs=1e-3)
    assert result["crosscheck"] is None and result["blocks"][0]["integral_j"] is None


def test_a_gpu_that_tells_nothing_is_refused(gpu):
    assert "neither energy nor power" in gpu("virtual", TWO_PERIODS, fault="unsupported")["unavailable"]


@pytest.mark.parametrize(
    ("fault", "reason"), [("zero", "did not move"), ("frozen", "did not move"), ("gain", "differ by 10.0%")]
)
def test_a_faulty_reading_voids_every_block_and_is_never_0_joules(gpu, fault, reason):
    result = gpu("virtual", TWO_PERIODS, fault=fault, fault_at=0)
    assert result["energy"] is None
    assert reason in result["reason"]
    assert len(result["blocks"]) == 4 and all(block["void"] for block in result["blocks"])
    assert all(block["energy_j"] != 0 for block in result["blocks"])
    assert (result["n_zero"] > 0) == (fault == "zero")


def test_a_counter_that_is_reset_voids_its_block_alone_and_the_block_is_repeated(gpu):
    result = gpu("virtual", TWO_PERIODS, fault="reset", fault_at=12)
    assert [block["void"] for block in result["blocks"]] == [True, False, False]
    assert result["blocks"][0]["reason"] == "the energy counter was reset"
    assert result["blocks"][0]["energy_j"] is None
    assert result["energy"]["value"] == pytest.approx(PERIOD_J / 16, abs=1e-4)


def test_a_counter_that_freezes_inside_a_block_is_caught_by_the_integral(gpu):
    block = gpu("virtual", TWO_PERIODS, fault="frozen", fault_at=12)["blocks"][0]
    assert block["void"] and "differ" in block["reason"]


def test_four_percent_between_counter_and_integral_is_a_warning(gpu):
    result = gpu("virtual", TWO_PERIODS, fault="drift")
    assert result["crosscheck"]["verdict"] == "warn"
    assert result["crosscheck"]["difference"] == pytest.approx(0.04, abs=1e-5)
    assert result["energy"]["value"] == pytest.approx(PERIOD_J / 16, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mig": 1}, "MIG mode"),
        ({"visible": "MIG-8f9a"}, "MIG slice"),
        ({"visible": ""}, "no GPU is allocated"),
        ({"visible": "7"}, "no GPU is allocated"),
        ({"count": 2}, "set CUDA_VISIBLE_DEVICES"),
    ],
)
def test_only_one_whole_allocated_gpu_is_measured(gpu, settings, said):
    assert said in gpu("virtual", TWO_PERIODS, **settings)["unavailable"]


@pytest.mark.parametrize("visible", ["1", "1,0", "GPU-fa4e0001", "GPU-fa4e0001-0000-4000-8000-000000000000"])
def test_the_allocated_gpu_of_two_is_the_one_read(gpu, visible):
    device = gpu("virtual", {"start_s": 8, "block_s": 1, "blocks": 1}, count=2, visible=visible)["device"]
    uuid = "GPU-fa4e0001-0000-4000-8000-000000000000"
    assert device["uuid_hash"] == hashlib.sha256(uuid.encode()).hexdigest()[:16]


def test_the_sampling_process_reads_constant_power_on_the_real_clock(gpu):
    settings = {"warmup_s": 0, "latency_s": 0, "idle_s": 0.5, "block_s": 2.2, "blocks": 1, "interval_ms": 10}
    result = gpu("real", settings, const_w=100)
    assert result["names"] == ["idle-before", 0, "idle-after"]
    block, covered = result["blocks"][0], result["covers"][1]
    assert block["integral_j"] == pytest.approx(100 * covered, rel=1e-4)
    assert block["energy_j"] == pytest.approx(100 * covered, abs=10.01)  # the counter moves every 100 ms
    assert block["seconds"] <= covered
    assert result["rising"]
    assert result["sampler"]["interval_ms"] == 10
    assert result["sampler"]["n_samples"] + result["sampler"]["n_missed"] > 0.9 * 100 * sum(result["covers"])
    assert result["device"]["fake"] is True
    assert result["closed"] == 0
