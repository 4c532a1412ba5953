"""The evidence of a GPU, rehearsed without one: its stages, cut short and resumed, its tables, and what it carries."""

import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import preloaded
import pytest

from benchmarks import gpu_evidence, harness
from benchmarks.gpu import denoiser_table, sensor, stages
from benchmarks.gpu.denoisers import AGAIN, BASELINE, CONFIGURATIONS
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.measuring.meters.trace import trace_of

HERE = Path(__file__).parent
SCRIPT = Path(gpu_evidence.__file__)
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc compiles the fake NVML")


def rehearse(output, *options, python=None, environment=None):
    command = [python or preloaded.jobs().python, SCRIPT, "--device", "cpu", "--size", "tiny", "--output", output]
    command += ["--least-s", "0.5", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)


def test_denoisers_are_measured_in_turns_by_workers_and_not_again(tmp_path):
    chosen = ["--stages", "denoisers", "--denoisers", "z-image", "--configurations", "nf4", "--minutes", "4",
              "--meter", "estimate"]  # fmt: skip
    eager = {"TORCHDYNAMO_DISABLE": "1"}  # torch.compile returns what it is given
    done = rehearse(tmp_path, *chosen, environment=eager)
    assert done.returncode == 0, done.stderr
    found = stages.read(tmp_path, "denoisers")
    assert found["status"] == "complete" and set(found["cells"].values()) == {"complete"}, done.stdout
    assert {(row["configuration"], row["images"], row["compiled"]) for row in found["rows"]} == {
        (name, images, compiled) for name in (BASELINE, "nf4") for images in (1,) for compiled in (True, False)
    }
    for row in found["rows"]:
        assert row["status"] == "ok" and row["finite"] and row["seconds"] > 0 and row["energy_j"] > 0, row
        assert row["image_energy_j"] == pytest.approx(8 * row["energy_j"] / row["images"])
        assert row["seconds_ratio_low"] <= row["seconds_ratio"] <= row["seconds_ratio_high"]
        assert row["weights_ratio"] == 1 if row["configuration"] == BASELINE else row["weights_ratio"] < 0.9
    before = (tmp_path / "denoisers.json").stat().st_mtime_ns
    assert rehearse(tmp_path, *chosen).returncode == 0 and (tmp_path / "denoisers.json").stat().st_mtime_ns == before


TWO = """
import sys
from benchmarks.gpu import stages
for stage in ("machine", "sensor"):
    stages.run_stage(stages.Record(stage, sys.argv[1], "cpu", "tiny", "nvml", 60))
"""


@needs_gcc
def test_board_and_sensor_are_read_through_the_real_binding(tmp_path):
    pytest.importorskip("pynvml")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, HERE.parent / "nvml/fakenvml.c"], check=True)
    scripts = str(manifest.PROJECT / "workflow_scripts")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": scripts, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", TWO, tmp_path / "found"], env=environment, check=True)
    machine, read = (stages.read(tmp_path / "found", stage) for stage in ("machine", "sensor"))
    assert machine["status"] == read["status"] == "complete"
    assert machine["meter"]["fake"] and machine["peak_gops"]["float32"] > 0 and machine["copy_gb_per_s"] > 0
    told = {(field["field"], field["scope"]): field for field in machine["fields"]}
    assert told[83, "GPU"]["value"] > 0 and told[83, "GPU"]["error"] is None
    assert told[83, "memory"]["value"] is None and told[83, "memory"]["error"]
    assert set(read["phases"]) == {"idle", "load", "quarter", "idle again"} and read["step"]["before_w"] > 0
    for phase in read["phases"].values():
        assert phase["fault"] is None and phase["energy_j"] > 0 and phase["crosscheck"]
        assert phase["counter_period_ms"]["p50"] == pytest.approx(100, rel=0.3)  # as the fake one publishes


def test_a_stage_that_is_cut_short_goes_on_with_what_is_left(tmp_path, monkeypatch):
    record = stages.Record("denoisers", tmp_path, "cpu", "tiny", "nvml", 0.0)
    measured, sessions = [], [("sd35-medium", 1), ("sdxl", 1)]
    monkeypatch.setattr(denoiser_table, "SESSIONS", sessions)

    def session(record, name, images, modes):
        measured.append((name, modes))
        for mode in modes:
            whole = record.left() > 50
            denoiser_table.keep(record, (name, images, mode), [{"configuration": BASELINE, "status": "ok"}], whole)

    monkeypatch.setattr(denoiser_table, "session", session)
    stages.run_stage(record)
    assert not measured and stages.read(tmp_path, "denoisers")["status"] == "partial"
    stages.run_stage(stages.Record("denoisers", tmp_path, "cpu", "tiny", "nvml", 20.0))
    assert stages.read(tmp_path, "denoisers")["status"] == "partial" and len(measured) == 2
    stages.run_stage(stages.Record("denoisers", tmp_path, "cpu", "tiny", "nvml", 100.0))
    assert stages.read(tmp_path, "denoisers")["status"] == "complete" and len(measured) == 4
    stages.run_stage(stages.Record("denoisers", tmp_path, "cpu", "tiny", "nvml", 100.0))
    assert len(measured) == 4 and len(stages.read(tmp_path, "denoisers")["rows"]) == 4


STAGE = """
import json, os, sys, time
stage, output = sys.argv[sys.argv.index("--stage") + 1], sys.argv[1]
def write(**entries):
    open(f"{output}/{stage}.json", "w").write(json.dumps({"stage": stage, **entries}))
write(status="running", rows=[1])
if stage == "machine":
    raise ValueError("the board is not there")
if stage == "sensor":
    time.sleep(60)
write(status="complete", rows=[1, 2])
"""


def test_a_stage_that_fails_or_hangs_says_why_and_the_next_goes_on(tmp_path, capsys):
    command = [sys.executable, "-c", STAGE, str(tmp_path)]
    start = time.monotonic()
    found = stages.run_all(["machine", "sensor", "kernels"], tmp_path, 0.05, command, least_s=0.1)
    assert time.monotonic() - start < 20
    assert found["machine"] == "failed"
    assert stages.read(tmp_path, "machine")["reason"] == "ValueError: the board is not there"
    assert found["sensor"] == "partial" and "was ended" in stages.read(tmp_path, "sensor")["reason"]
    assert stages.read(tmp_path, "sensor")["rows"] == [1]  # what it had found
    found = stages.run_all(["kernels"], tmp_path, 1, command, least_s=0.1)
    assert found == {"kernels": "complete"} and "kernels: complete" in capsys.readouterr().out


def test_figures_of_another_device_are_not_added_to(tmp_path):
    manifest.write_json(tmp_path / "kernels.json", {"device": "cuda", "size": "true"})
    with pytest.raises(DataError, match=r"kernels.json: device: holds figures of cuda, not of cpu; choose another"):
        stages.Record("kernels", tmp_path, "cpu", "true", "none", 1)


def test_the_power_of_a_steady_load_is_free_of_the_counters_steps():
    """The counter moves every 100 ms, as a GPU's does, and lags by up to as much at either end."""
    times = np.arange(0, 1.82, 0.01) + 0.0937
    samples = [(t, 500.0, 500 * math.floor(10 * t) / 10, math.nan) for t in times]
    trace = trace_of(samples, 0, "test")
    plain = trace.energy_j / (times[-1] - times[0])
    assert abs(plain / 500 - 1) > 0.01 and sensor.steady_watts(trace) == pytest.approx(500, rel=0.006)
    assert sensor.periods(sensor.updates(trace)[0])["p50"] == pytest.approx(100)
    without = trace_of([(t, 300.0, math.nan, math.nan) for t in times], 0, "test")
    assert sensor.steady_watts(without) == pytest.approx(300)
    assert sensor.steady_watts(trace_of([(t, 300.0, -t, math.nan) for t in times], 0, "test")) is None


def test_a_step_of_the_load_is_followed_after_a_delay():
    times = np.arange(0, 4, 0.02)
    watts = np.where(times < 1.3, 80.0, np.where(times < 1.5, 400.0, 700.0))  # the load began at 1
    samples = [(t, w, math.nan, math.nan) for t, w in zip(times, watts, strict=True)]
    step = sensor.step_response(trace_of(samples, 0, "test"), 1.0)
    assert (step["before_w"], step["after_w"]) == (80, 700)
    assert step["first_ms"] == pytest.approx(300, abs=21) and step["risen_ms"] == pytest.approx(500, abs=21)


def test_configurations_that_do_not_fit_side_by_side_are_measured_after_one_another():
    names = list(CONFIGURATIONS)
    assert denoiser_table.groups(names, 8.06, 1, None) == [names]
    assert len(denoiser_table.groups(names, 8.06, 1, 139 * 2**30)) == 1
    parts = denoiser_table.groups(names, 8.06, 1, 48 * 2**30)
    assert len(parts) > 1 and all(part[0] == BASELINE for part in parts) and parts[0][1] == AGAIN
    assert sorted(name for part in parts for name in part[1:]) == sorted(set(names) - {BASELINE})


def turn(seconds, joules=None, **more):
    return {"status": "ok", "reason": None, "seconds": seconds, "energy_j": joules, "watts": 1.0, "calls": 9,
            "energy_reason": None if joules else "no meter", "meter": "nvml", "estimated": False, **more}  # fmt: skip


def prepared(weights=100.0, peak=200.0):
    return {"status": "ok", "reason": None, "kernel": "k", "weights_mb": weights, "peak_mb": peak, "finite": True}


def test_ratios_are_of_blocks_of_the_same_round_and_failures_are_rows():
    answers = {BASELINE: prepared(), "nf4": prepared(30.0, 120.0), "W4A8": {"status": "failed", "reason": "no kernel"}}
    blocks = {BASELINE: [turn(0.4, 80.0), turn(0.44, 88.0), turn(0.36, 72.0)],
              "nf4": [turn(0.2, 60.0), turn(0.22, 66.0), turn(0.18, 54.0)]}  # fmt: skip
    rows = {row["configuration"]: row for row in denoiser_table.rows_of(answers, blocks)}
    assert rows["nf4"]["seconds_ratio"] == rows["nf4"]["seconds_ratio_low"] == pytest.approx(0.5)
    assert rows["nf4"]["energy_ratio"] == pytest.approx(0.75) and rows["nf4"]["seconds"] == 0.2
    assert rows["nf4"]["weights_ratio"] == 0.3 and rows["nf4"]["peak_ratio"] == 0.6
    assert rows["W4A8"] == {"configuration": "W4A8", "status": "failed", "reason": "no kernel"}
    blocks["nf4"][2] = {"status": "failed", "reason": "an illegal access"}
    rows = {row["configuration"]: row for row in denoiser_table.rows_of(answers, blocks)}
    assert rows["nf4"]["status"] == "failed" and "seconds" not in rows["nf4"]


ANSWER = 'import sys, time\nfor line in sys.stdin:\n    {}\n    print(\'{{"status": "ok"}}\', flush=True)'


def test_a_worker_that_dies_or_is_late_is_a_configuration_that_failed(tmp_path):
    programs = {"quick": "pass", "dead": "sys.exit(1)", "late": "time.sleep(60)"}
    commands = {name: [sys.executable, "-c", ANSWER.format(does)] for name, does in programs.items()}
    record = stages.Record("denoisers", tmp_path, "cpu", "tiny", "none", 8)
    with harness.workers(commands, ending_s=0) as ask:
        late = {}
        found = denoiser_table.prepare(record, ask, 1, False, late)
        assert found["quick"] == {"status": "ok"}
        assert "ended before it answered" in found["dead"]["reason"]
        assert found["late"]["hurried"] and "was not prepared" in found["late"]["reason"]
        assert ask["late"].process.poll() is not None  # lest it disturb the others
        assert set(late) == {"late"} and denoiser_table.prepare(record, ask, 4, False, late)["late"] == found["late"]


def test_a_solver_that_was_cut_waits_for_a_longer_turn(tmp_path, monkeypatch):
    from benchmarks.gpu import solver_table

    begun = []
    monkeypatch.setattr(solver_table, "single_layers", lambda device, size: [{"layer": "l"}])
    monkeypatch.setattr(solver_table, "whole_denoiser", lambda name, record: begun.append(name) or {"solver": name})
    manifest.write_json(tmp_path / "solvers.json", {"cut": {"gptq": 100.0}, "status": "partial"})
    stages.run_stage(stages.Record("solvers", tmp_path, "cpu", "tiny", "none", 90))
    found = stages.read(tmp_path, "solvers")
    assert begun == ["qronos", "brecq"] and found["status"] == "partial" and found["cut"] == {"gptq": 100.0}
    stages.run_stage(stages.Record("solvers", tmp_path, "cpu", "tiny", "none", 200))
    found = stages.read(tmp_path, "solvers")
    assert begun[2:] == ["gptq"] and found["status"] == "complete" and not found["cut"]


OF_A_GPU = """
import pytest, time
pytestmark = pytest.mark.cuda
def test_good(): pass
def test_slow(): time.sleep({seconds})
def test_bad(): assert 1 == {number}
@pytest.mark.skip(reason="no library")
def test_skipped(): pass
"""


def test_the_tests_of_a_gpu_are_kept_one_by_one_and_those_that_passed_not_run_again(tmp_path):
    """In a process of its own, as pytest runs within pytest otherwise; the marked tests are those of a folder."""
    code = (
        "import pathlib, sys\nfrom benchmarks.gpu import cuda_tests, stages\n"
        "cuda_tests.PROJECT = pathlib.Path(sys.argv[1])\n"
        "stages.run_stage(stages.Record('tests', sys.argv[1], 'cpu', 'tiny', 'none', float(sys.argv[2])))"
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")

    def found(limit_s, **given):
        (tmp_path / "tests/test_on_it.py").write_text(OF_A_GPU.format(**given))
        environment = {**os.environ, "PYTHONPATH": str(manifest.PROJECT / "workflow_scripts")}
        environment.pop("PYTEST_CURRENT_TEST", None)
        subprocess.run([sys.executable, "-c", code, tmp_path, str(limit_s)], env=environment, check=True)
        return stages.read(tmp_path, "tests")

    first = found(2.5, seconds=3, number=2)
    assert first["status"] == "partial" and first["counts"] == {"passed": 2}
    second = found(60, seconds=0, number=2)
    assert second["status"] == "failed" and "1 of 4 tests failed: tests/test_on_it.py::test_bad" in second["reason"]
    assert "assert 1 == 2" in second["tests"]["tests/test_on_it.py::test_bad"]["said"]
    third = found(60, seconds=0, number=1)
    assert third["status"] == "complete" and third["counts"] == {"passed": 3, "skipped": 1}


@pytest.mark.slow
def test_every_stage_is_rehearsed_with_real_compiling(tmp_path):
    names = [name for name in stages.MODULES if name != "experiment"]
    for _ in range(6):  # each of two minutes: cut short, and resumed
        chosen = ["--meter", "estimate", "--denoisers", "sd35-medium", "flux1-dev", "--minutes", "2", "--stages"]
        done = rehearse(tmp_path, *chosen, *names, python=sys.executable)
        found = {stage: stages.read(tmp_path, stage).get("status") for stage in names}
        if set(found.values()) == {"complete"}:
            break
    assert set(found.values()) == {"complete"}, f"{found}\n{done.stdout}\n{done.stderr}"
    assert {row["solver"] for row in stages.read(tmp_path, "solvers")["rows"]} == {"gptq", "qronos", "brecq"}
    rows = stages.read(tmp_path, "denoisers")["rows"]
    assert {row["configuration"] for row in rows if row["status"] == "ok"} >= {BASELINE, AGAIN, "int8 dynamic", "W4A8"}
