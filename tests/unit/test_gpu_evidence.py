"""The evidence of a GPU, rehearsed without one: its stages, cut short and resumed, its tables, and what it carries."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import preloaded
import pytest
import torch

from benchmarks import gpu_evidence, gpu_tables, harness
from benchmarks.gpu import denoiser_table, goals, random_denoiser, sensor, stages, wheels
from benchmarks.gpu.denoisers import AGAIN, BASELINE, CONFIGURATIONS, DENOISERS
from quantwatt import registry
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError, Unsupported
from quantwatt.inference import kernel_choice
from quantwatt.inference.linear import QuantizedLinear
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


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_has_as_many_parameters_as_the_released_one(name):
    model = random_denoiser.skeleton(name, "true", "meta")
    assert sum(each.numel() for each in model.parameters()) / 1e9 == pytest.approx(DENOISERS[name].parameters, abs=0.01)
    assert DENOISERS[name].published is None or gpu_tables.published(name)


@pytest.mark.parametrize("name", DENOISERS)
def test_a_small_denoiser_of_each_kind_draws_what_bfloat16_draws(name):
    drawn = {}
    for configuration in (BASELINE, "int8 dynamic", AGAIN):
        model, kernel, blocks = random_denoiser.build(name, "tiny", configuration, "cpu")
        assert blocks and not any(each.is_meta for each in (*model.parameters(), *model.buffers()) if each.numel())
        with torch.no_grad():
            output = model(**random_denoiser.inputs_of(name, "tiny", model, 1, "cpu"))[0]
        drawn[configuration] = torch.stack(output) if isinstance(output, list) else output
    assert torch.equal(drawn[BASELINE], drawn[AGAIN]) and kernel == "torch linear"
    difference = (drawn["int8 dynamic"] - drawn[BASELINE]).float().norm() / drawn[BASELINE].float().norm()
    assert 0 < difference < 0.5  # random weights pass errors on; noise would be at 1.4


def test_layers_of_one_shape_have_memory_of_their_own():
    model, _, _ = random_denoiser.build("flux1-dev", "tiny", "W4A8", "cpu")
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    pointers = [buffer.data_ptr() for layer in layers for name, buffer in layer.named_buffers() if buffer.numel()]
    assert len(layers) > 10 and len(pointers) == len(set(pointers))


def test_a_format_that_the_device_cannot_compute_is_refused_with_the_reason():
    with pytest.raises(Unsupported, match="cannot compute float8-dynamic on cpu|requires CUDA"):
        random_denoiser.build("sd35-medium", "tiny", "float8 rows (torchao)", "cpu")


KERNELS = {"int8 dynamic": "fused_int_mm", "W4A16 group 128": "fused_tinygemm", "nf4": "bitsandbytes_four_bit",
           "W4A8": "triton_w4a8"}  # fmt: skip


@pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch's builds for CPUs have no CUDA device to feign")
@pytest.mark.parametrize("size", ["tiny", pytest.param("true", marks=pytest.mark.slow)])
@pytest.mark.parametrize("configuration", [BASELINE, *KERNELS])
@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_is_traced_on_a_gpu_that_is_not_there(name, configuration, size, monkeypatch):
    """Shapes, types and devices of the CUDA branches, with tensors that have no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def kernel_for(layer, device):
        kernel = registry.load("kernels", KERNELS[configuration])
        return (registry.load("kernels", "unpacked") if kernel.refusal(layer, device) else kernel), None

    bare = random_denoiser.skeleton(name, size, "meta")
    monkeypatch.setattr(kernel_choice, "kernel_for", kernel_for)
    monkeypatch.setattr(random_denoiser, "skeleton", lambda *_: bare)
    monkeypatch.setattr(random_denoiser.copy, "deepcopy", lambda layer: layer)  # a feigned tensor has no memory
    monkeypatch.setattr(QuantizedLinear, "to", lambda self, *_: self)
    torch.compiler.set_stance("force_eager")
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            for module in bare.modules():
                for key, buffer in module._buffers.items():
                    module._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
            model, _, _ = random_denoiser.build(name, size, configuration, "cuda")
            output = model(**random_denoiser.inputs_of(name, size, model, 1, "cuda"))[0]
    finally:
        torch.compiler.set_stance("default")
    output = output[0] if isinstance(output, list) else output
    assert output.device.type == "cuda" and output.dtype == torch.bfloat16


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


THERE = """torch triton transformers accelerate safetensors numpy pandas scipy matplotlib pillow nvidia-ml-py""".split()
OPTIONAL = {"timm", "open-clip-torch:timm"}  # open_clip imports it where it is there


def named(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(name):
    """Names of what an installed package requires, without its extras; nothing where it is not installed."""
    from packaging.requirements import Requirement

    try:
        listed = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return set()
    parsed = map(Requirement, listed)
    return {named(each.name) for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})}


def test_the_wheels_hold_all_that_they_require():
    there, waiting = set(), list(map(named, THERE))
    while waiting:
        name = waiting.pop()
        if name not in there:
            there.add(name)
            waiting += requirements(name)
    carried = set(map(named, wheels.NEEDED + wheels.WORKFLOW))
    missing = {f"{name}: {sorted(requirements(name) - there - carried - OPTIONAL)}" for name in carried}
    assert {each for each in missing if not each.endswith("[]")} == set()
    assert set(wheels.NEEDED + wheels.WORKFLOW) <= set(wheels.pins())


def test_a_wheel_is_carried_without_what_is_for_other_devices(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "bitsandbytes-1-py3-none-any.whl", "w") as wheel:
        files = [f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cuda130", "cuda128", "rocm72", "cpu")]
        files += ["bitsandbytes/__init__.py", "bitsandbytes/tests/test_all.py", "pulp/solverdir/cbc/osx/i64/cbc",
                  "pulp/solverdir/cbc/linux/i64/cbc"]  # fmt: skip
        for name in files:
            wheel.writestr(name, "x")
        wheel.writestr("bitsandbytes-1.dist-info/RECORD", "".join(f"{name},sha256=1,1\n" for name in files))
    wheels.carry(tmp_path / "bitsandbytes-1-py3-none-any.whl", tmp_path / "carried/b.whl")
    with zipfile.ZipFile(tmp_path / "carried/b.whl") as carried:
        kept = carried.namelist()[:-1]
        record = carried.read("bitsandbytes-1.dist-info/RECORD").decode()
    assert kept == [files[0], files[3], files[4], files[7]] and record.count("\n") == 4


@pytest.fixture
def evidence(tmp_path):
    """A folder of stages' files as of a GPU."""
    folder = tmp_path / "found"
    machine = {"device": "cuda", "size": "true", "torch": {"name": "NVIDIA H200", "version": "2.11.0"},
               "meter": {"fake": False, "driver": "580.1"}}  # fmt: skip
    rows = []
    for name, images, compiled in (("sd35-large", 1, True), ("sd35-large", 4, True)):
        place = {"denoiser": name, "images": images, "compiled": compiled, "steps": 28}
        for configuration, ratio in ((BASELINE, 1.0), ("int8 dynamic", 0.7)):
            rows.append({**place, "configuration": configuration, "reason": None, "image_seconds": 5 * ratio,
                         "image_energy_j": 4000.0 * ratio, "energy_reason": None, "peak_ratio": 0.6,
                         "weights_ratio": 0.5, **{f"{kind}_ratio{end}": ratio for kind in ("seconds", "energy")
                                                  for end in ("", "_low", "_high")}})  # fmt: skip
        rows.append({**place, "configuration": "nf4", "reason": "no kernel"})
    crosscheck = {"idle": {"crosscheck": {"difference": -0.02}}, "load": {"crosscheck": {"difference": 0.04}}}
    for stage, found in (
        ("machine", machine), ("denoisers", {"rows": rows}), ("sensor", {"phases": crosscheck}),
        ("tests", {"counts": {"passed": 9}}),
    ):  # fmt: skip
        manifest.write_json(folder / f"{stage}.json", found)
    return folder


def test_evidence_is_added_by_its_board_and_shown_in_the_readme(evidence, tmp_path):
    home, readme, figure = tmp_path / "gpu", tmp_path / "README.md", tmp_path / "gpu.png"
    home.mkdir()
    shutil.copy(gpu_tables.HOME / "published.json", home)
    readme.write_text(f"before\n{gpu_tables.BEGIN}old\n{gpu_tables.END}after\n")
    assert gpu_tables.add(evidence, home, tmp_path) == home / "nvidia-h200"
    gpu_tables.write(home, readme, figure)
    text = readme.read_text()
    assert text.startswith(f"before\n{gpu_tables.BEGIN}*NVIDIA H200") and text.endswith(f"{gpu_tables.END}after\n")
    assert "| compiled | int8 dynamic | 3.5 | 2800 | 0.7 | 0.7 | 0.5 | 0.6 |" in text and "no kernel" in text
    assert "ML.ENERGY Benchmark v3: 4,420 J, 6.56 s an image" in text and "(gpu/nvidia-h200/README.md)" in text
    assert figure.read_bytes().startswith(b"\x89PNG") and "old" not in text
    whole = (home / "nvidia-h200/README.md").read_text()
    assert "sd35-large, 4 images" in whole and "sd35-large, 4 images" not in text
    assert "| difference of counter and integral, idle and load: 3 % at most | 0.04 | no |" in whole
    assert "1.3 at least | 1.43 | yes |" in whole and "25 % at most | 0.095 | yes |" in whole
    assert "| minutes of GPTQ, sd35-medium: 10 at most |  | not measured |" in whole


def test_a_rehearsal_is_no_evidence(evidence, tmp_path):
    machine = json.loads((evidence / "machine.json").read_text())
    for change in ({"device": "cpu"}, {"size": "tiny"}, {"meter": {"fake": True}}):
        manifest.write_json(evidence / "machine.json", machine | change)
        with pytest.raises(DataError, match="is a rehearsal, not of a GPU at true size; it is no evidence"):
            gpu_tables.add(evidence, tmp_path / "gpu")
    with pytest.raises(DataError, match="has no machine.json"):
        gpu_tables.add(tmp_path, tmp_path / "gpu")


def test_goals_without_figures_are_not_measured():
    found = goals.goals({stage: {} for stage in stages.MODULES})
    assert len(found) >= 10 and {met for _, _, met in found} == {goals.OPEN}


def test_readme_shows_what_there_is(tmp_path):
    copied = tmp_path / "README.md"
    shutil.copy(gpu_tables.README, copied)
    expected = gpu_tables.section(gpu_tables.HOME, gpu_tables.FIGURE, manifest.PROJECT)
    assert gpu_tables.BEGIN + expected + gpu_tables.END in copied.read_text()


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
