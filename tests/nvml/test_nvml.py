"""The NVML meter over the real pynvml and a library whose joules are known (fakenvml.c)."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantwatt.measuring.meters.nvml import COUNTERS, NEEDED, POWERS
from quantwatt.measuring.meters.nvml_boards import ALLOCATIONS

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
        environment = {key: value for key, value in os.environ.items() if key not in ALLOCATIONS}
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

    def run(function, arguments, variant="full", visible=None, slurm=None, order=None, **fake):
        environment = {f"FAKE_NVML_{key.upper()}": str(value) for key, value in fake.items()}
        if function in ("virtual", "window"):
            environment["FAKE_NVML_NOW_FILE"] = str(tmp_path / "now")
        given = {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": order, **(slurm or {})}
        environment |= {key: value for key, value in given.items() if value is not None}
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
    assert result["crosscheck"]["verdict"] == "warn" and not result["blocks"][0]["invalid"]


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
    assert len(result["blocks"]) == 4 and all(block["invalid"] for block in result["blocks"])
    assert all(block["energy_j"] != 0 for block in result["blocks"])
    assert (result["n_zero"] > 0) == (fault == "zero")


def test_a_counter_that_is_reset_voids_its_block_alone_and_the_block_is_repeated(gpu):
    result = gpu("virtual", TWO_PERIODS, fault="reset", fault_at=12)
    assert [block["invalid"] for block in result["blocks"]] == [True, False, False]
    assert result["blocks"][0]["reason"] == "the energy counter was reset"
    assert result["blocks"][0]["energy_j"] is None
    assert result["energy"]["value"] == pytest.approx(PERIOD_J / 16, abs=1e-4)


def test_a_counter_that_freezes_inside_a_block_is_caught_by_the_integral(gpu):
    block = gpu("virtual", TWO_PERIODS, fault="frozen", fault_at=12)["blocks"][0]
    assert block["invalid"] and "differ" in block["reason"]


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
    settings = {"warmup_s": 0, "idle_s": 0.5, "block_s": 2.2, "blocks": 1, "limit_s": 1, "interval_ms": 10}
    result = gpu("real", settings, const_w=100)
    assert result["names"] == ["idle-before", 0, 1, "idle-after"]
    block, covered = result["blocks"][0], result["covers"][1]
    assert block["integral_j"] == pytest.approx(100 * covered, rel=1e-4)
    assert block["energy_j"] == pytest.approx(100 * covered, abs=10.01)  # the counter moves every 100 ms
    assert block["seconds"] <= covered
    assert result["rising"]
    assert result["sampler"]["interval_ms"] == 10
    sampler, periods = result["sampler"], 100 * sum(result["covers"])
    assert sampler["n_samples"] + sampler["n_missed"] == pytest.approx(periods, rel=0.1)
    assert sampler["n_samples"] > periods / 2  # a busy machine misses some, and says so
    assert result["device"]["fake"] is True
    assert result["closed"] == 0
    held = result["device"]["throttled_s"]  # from before the block until after the rest, a quarter of the time
    assert held["thermal"] == 0 and 2.2 / 4 < held["power"] < 2 * sum(result["covers"]) / 4


def uuid_hash(index):
    return hashlib.sha256(f"GPU-fa4e000{index}-0000-4000-8000-000000000000".encode()).hexdigest()[:16]


def hashes(result):
    return [device["uuid_hash"] for device in result["device"]["devices"]]


@pytest.mark.parametrize(
    ("slurm", "boards"),
    [
        ({"SLURM_JOB_GPUS": "2"}, [2]),
        ({"SLURM_STEP_GPUS": "1,2", "SLURM_JOB_GPUS": "0,1,2"}, [1, 2]),
        ({"SLURM_JOB_GPUS": "5,6,7"}, [0, 1, 2]),  # a cgroup shows these three alone, and NVML numbers them from 0
    ],
)
def test_without_cuda_visible_devices_slurm_says_which_gpus_are_allocated(gpu, slurm, boards):
    assert hashes(gpu("window", {"settings": {"gpus": "all"}}, slurm=slurm, count=3)) == list(map(uuid_hash, boards))
    assert hashes(gpu("window", {}, slurm=slurm, count=3)) == [uuid_hash(boards[0])]


def test_cuda_visible_devices_goes_before_slurm(gpu):
    assert hashes(gpu("window", {}, visible="1", slurm={"SLURM_JOB_GPUS": "2"}, count=3)) == [uuid_hash(1)]


@pytest.mark.parametrize(("settings", "boards"), [({}, [2]), ({"gpus": "all"}, [2, 0])])
def test_on_cuda_torch_says_which_gpus_it_uses(gpu, settings, boards):
    uuids = [f"fa4e000{index}-0000-4000-8000-000000000000" for index in (2, 0)]
    arguments = {"settings": settings, "device": "cuda", "torch_uuids": uuids}
    assert hashes(gpu("window", arguments, visible="1", count=3)) == list(map(uuid_hash, boards))


@pytest.mark.parametrize(
    ("uuid", "said"),
    [
        ("MIG-0f1e2d3c-0000-4000-8000-000000000000", "a MIG slice has no power reading"),
        ("0f1e2d3c-0000-4000-8000-000000000000", "in MIG mode, whose slices have no power reading"),
    ],
)
def test_a_mig_slice_that_torch_uses_is_refused_as_such(gpu, uuid, said):
    arguments = {"device": "cuda", "torch_uuids": [uuid]}
    assert said in gpu("window", arguments, mig=1)["unavailable"]
    assert ("MIG" in gpu("window", arguments)["unavailable"]) == uuid.startswith("MIG")


def test_several_boards_are_summed_in_one_sampling_process(gpu):
    result = gpu("window", {"seconds": 8, "settings": {"gpus": "all"}}, visible="2,0", count=3, reasons="0x24")
    assert result["energy_j"] == pytest.approx((3 + 1) * 2 * PERIOD_J, abs=0.01)  # the third draws three times as much
    held = np.dot(result["watts"][:-1], np.diff(result["times"]))
    assert held == pytest.approx((3 + 1) * 2 * PERIOD_J, abs=0.1)
    device = result["device"]
    assert hashes(result) == [uuid_hash(2), uuid_hash(0)]
    assert (device["name"], device["fake"], device["power_limit_w"]) == ("2 × FAKE GPU of the tests", True, 1400)
    assert (device["temperature_c"], device["driver_memory_mb"]) == (57, 7000)
    assert device["throttle_reasons"] == ["power cap", "software thermal slowdown"]
    assert device["throttled_s"] == {"power": 2 * 16 / 4, "thermal": 0}  # after 8 and 8 seconds


def test_a_sum_with_a_board_that_may_not_be_opened_is_refused(gpu):
    result = gpu("window", {"seconds": 1, "settings": {"gpus": "all"}}, count=2, closed=1)
    assert "does not let this user read the GPU" in result["unavailable"]


def test_a_gpu_of_another_user_does_not_hide_the_allocated_one(gpu):
    assert hashes(gpu("window", {}, visible="1", count=2, closed=0)) == [uuid_hash(1)]
    assert "/dev/nvidia*" in gpu("window", {}, visible="0", count=2, closed=0)["unavailable"]


def test_denied_readings_are_explained(gpu):
    said = gpu("window", {}, fault="denied")["unavailable"]
    assert "does not let this user read the GPU (Insufficient Permissions)" in said


def test_a_number_among_unlike_gpus_needs_the_same_order_on_both_sides(gpu):
    assert "CUDA_DEVICE_ORDER" in gpu("window", {}, visible="1", count=2, unlike=1)["unavailable"]
    assert hashes(gpu("window", {}, visible="1", count=2, unlike=1, order="PCI_BUS_ID")) == [uuid_hash(1)]
    assert hashes(gpu("window", {}, visible="GPU-fa4e0001", count=2, unlike=1)) == [uuid_hash(1)]


def test_the_processes_on_the_gpu_are_told_or_unknown(gpu):
    """Unknown on WSL 2 (NVIDIA/cudf#9955) and where the driver lacks the call (gpuopenanalytics/pynvml#43)."""
    assert gpu("window", {}, pids="7,8,9")["processes"] == [7, 8, 9]
    assert gpu("window", {}, pids="")["processes"] is None  # in a container: none, not even this one
    assert gpu("window", {})["processes"] is None
    assert gpu("window", {}, variant="no-fields")["processes"] is None
    boards = gpu("window", {"settings": {"gpus": "all"}}, visible="0,1", count=2, pids="7")
    assert boards["processes"] == [7, 7]


OLD = """
class NVMLError(Exception):
    pass
def nvmlInit():
    pass
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (OLD, "/pynvml.py has no NVML_CLOCK_MEM: it belongs to another or an old package"),  # XuehaiPan/nvitop#44
        ("", "has no NVMLError: it belongs to another or an old package"),
        ("print 'of 2017'", "does not load (SyntaxError)"),  # one for Python 2
        ("import of_that_name_there_is_none", "needs nvidia-ml-py"),
    ],
)
def test_a_package_of_the_same_name_is_no_meter(tmp_path, source, said):
    (tmp_path / "pynvml.py").write_text(source)
    code = (
        "from quantwatt.measuring.meters import Metering, MeterUnavailable, open_meter\n"
        "try:\n    open_meter(Metering('nvml'))\n"
        "except MeterUnavailable as unavailable:\n    print(unavailable)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{SCRIPTS}"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert said in found.stdout and "pip install" in found.stdout and found.stdout.count("\n") == 1, found.stderr


def test_all_names_that_are_read_of_the_package_are_looked_for():
    read = set(COUNTERS[1:] + POWERS[1:])
    for module in ("nvml", "nvml_boards"):
        source = (SCRIPTS / "quantwatt" / "measuring" / "meters" / f"{module}.py").read_text()
        read |= set(re.findall(r"\b_?nvml\.((?:nvml|NVML|c_nvml)\w+)", source))
    assert read == set(NEEDED)


def test_no_gpu_at_all_is_refused(gpu):
    assert "sees no GPU" in gpu("window", {}, count=0)["unavailable"]


@pytest.mark.parametrize(("variant", "memory_mb"), [("full", 3500), ("no-fields", 4000)])  # older: with the reserved
def test_the_state_is_told_in_words(gpu, variant, memory_mb):
    device = gpu("window", {}, variant=variant, reasons="0x484")["device"]
    assert (device["pstate"], device["persistence"]) == ("P2", True)
    assert (device["sm_clock_mhz"], device["memory_clock_mhz"]) == (1980, 2619)
    assert device["throttle_reasons"] == ["power cap", "power brake", "reason 0x400"]
    assert device["driver_memory_mb"] == memory_mb
    assert (device["throttled_s"] is None) == (variant == "no-fields")
    assert gpu("window", {}, variant=variant)["device"]["throttle_reasons"] == []


def test_each_reading_carries_the_sensors_own_time(gpu):
    result = gpu("window", {"seconds": 1, "start_s": 8})
    assert result["times"] == pytest.approx(8 + np.append(np.arange(11), 10) / 10)
    assert result["sensor"] == pytest.approx(result["times"], abs=1e-6)  # published at each step of this clock
    older = gpu("window", {"seconds": 1}, variant="no-fields")
    assert np.isnan(older["sensor"]).all() and older["energy_j"] > 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [("lost", "GPU is lost"), ("unloaded", "Driver Not Loaded"), ("uninitialized", "Uninitialized")],
)
@pytest.mark.parametrize("variant", ["full", "no-fields"])
def test_a_gpu_that_goes_away_is_a_fault_and_missing_readings(gpu, variant, fault, said):
    result = gpu("window", {"seconds": 4, "start_s": 8}, variant, fault=fault, fault_at=10)
    assert result["energy_j"] is None and "the driver lost the GPU" in result["fault"] and said in result["fault"]
    assert np.isnan(result["watts"]).tolist() == [t >= 10 for t in result["times"]]
    assert result["n_missed"] == 22  # 10.0 to 12.0 s, and the last once more
    assert result["device"]["temperature_c"] is None and result["device"]["fake"] is True


def covered(result):
    return result["times"][-1] - result["times"][0]


def test_after_a_lost_gpu_the_next_start_tries_anew(gpu):
    gone, back = gpu("windows", {"seconds": 0.5, "faults": [["lost", 0.3], None]}, const_w=100)["windows"]
    assert gone["energy_j"] is None and "GPU is lost" in gone["fault"]
    assert back["fault"] is None and back["energy_j"] == pytest.approx(100 * covered(back), abs=10.01)
    assert back["pid"] != gone["pid"]


def test_a_gpu_that_stays_away_is_a_fault_of_every_window(gpu):
    found = gpu("windows", {"seconds": 0.2, "faults": [["lost", 0], ["unloaded", 0]]}, const_w=100)
    assert [result["energy_j"] for result in found["windows"]] == [None, None]
    assert all(result["fault"] for result in found["windows"])


def test_a_killed_sampling_process_costs_its_window_alone(gpu):
    killed, next_one = gpu("windows", {"seconds": 0.5, "faults": [None, None], "blow": "SIGKILL"}, const_w=100)[
        "windows"
    ]
    assert killed["energy_j"] is None and "ended early (signal 9)" in killed["fault"]
    assert next_one["fault"] is None and next_one["energy_j"] == pytest.approx(100 * covered(next_one), abs=10.01)


def test_the_sampling_process_tells_what_it_cost(gpu):
    result = gpu("windows", {"seconds": 1, "faults": [None]}, const_w=100)["windows"][0]
    cost = result["sampler"]
    assert cost["wall_s"] == pytest.approx(covered(result), abs=0.1)
    assert 0 < cost["cpu_s"] < 0.5 * cost["wall_s"]
    assert 0 <= cost["late_p50_ms"] <= cost["late_p99_ms"]
