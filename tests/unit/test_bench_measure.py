"""The benchmark of the power sampler's overhead, with the fake NVML, and of whole cells, with simulated processes."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks import bench_kernels, bench_measure, measured_cells, simulated_machine
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.inference import checkpoint
from quantwatt.measuring import processes
from quantwatt.measuring.processes import Processes

SCRIPT = Path(bench_measure.__file__)
FOUND = {
    "sensor": "fake NVML",
    "interval_ms": 10,
    "cpu_share": 0.004,
    "waking_cpu_share": 0.003,
    "jitter_p50_ms": 0.1,
    "jitter_p99_ms": 0.5,
    "loop_effect": 0.001,
    "loop_effect_low": -0.002,
    "loop_effect_high": 0.004,
    "load_average": 0.3,
    "n_cpus": 2,
}


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc compiles the fake NVML")
def test_it_measures_the_fake_nvml_and_says_so(tmp_path):
    pytest.importorskip("pynvml")
    output = tmp_path / "measure.json"
    options = ["--seconds", "1", "--turns", "3", "--turn-s", "0.02", "--interval-ms", "5", "--output", output]
    options += ["--comparisons", "0", "--methods"]
    for _ in range(3):  # neighbours may hold the sampler up for so long that it gives no energy, which it then says
        run = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True)
        if "the sampler gave nothing to measure" not in run.stderr:
            break
    assert run.returncode == 0, run.stderr
    found = json.loads(output.read_text())
    if found["sensor"] != "fake NVML":
        pytest.skip("this machine has a GPU, and the benchmark measures that")
    assert found["source"] == "energy: field 83, scope 0; power: field 186 (instant), scope 0"
    assert 0 < found["cpu_share"] < 0.5 and found["seconds"] >= 1
    assert 0 < found["waking_cpu_share"] < 0.5
    assert 0 <= found["jitter_p50_ms"] <= found["jitter_p99_ms"]
    assert found["loop_effect_low"] <= found["loop_effect"] <= found["loop_effect_high"]
    assert run.stdout.startswith("Reading fake NVML every 5 ms takes ") and len(run.stdout.splitlines()) == 1


class SteppingMeter:
    """A meter that slows the loop by a known factor while it is on, on a clock that only the loop moves."""

    def __init__(self, monkeypatch, slow_down, drift):
        self.now, self.factor, self.slow_down, self.drift = 0.0, 1.0, slow_down, drift
        monkeypatch.setattr(bench_measure, "loop_seconds", self.loop)

    def loop(self, loops, values):
        self.now += loops
        return loops * 1e-4 * self.factor * (1 + self.drift * self.now)

    def start(self):
        self.factor = 1 + self.slow_down

    def stop(self):
        self.factor = 1.0


@pytest.mark.parametrize("slow_down", [0.0, 0.02])
def test_taking_turns_finds_the_slow_down_on_a_machine_that_drifts(monkeypatch, slow_down):
    meter = SteppingMeter(monkeypatch, slow_down, drift=1e-7)
    effects = bench_measure.loop_effect(meter, turns=5, turn_s=0.25)
    assert np.expm1(effects) == pytest.approx(np.full(5, slow_down), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "within the goals"),
        ({"cpu_share": 0.02}, "Not within the goals: more than 1% of a core"),
        ({"jitter_p99_ms": 3.0}, "later than 2 ms"),
        ({"loop_effect_low": 0.001}, "a loop whose time it changes"),
        ({"loop_effect_low": None, "loop_effect_high": None}, "[?, ?]"),
    ],
)
def test_its_sentence_names_the_goals_that_were_missed(change, said):
    assert said in bench_measure.sentence(FOUND | change)


def test_without_a_driver_and_a_compiler_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    before = os.environ.get("LD_LIBRARY_PATH")
    with pytest.raises(DataError, match="there is no NVML, and the fake one cannot be compiled"):
        bench_measure.load_fake(str(tmp_path))
    assert os.environ.get("LD_LIBRARY_PATH") == before


class Simulated:
    """Stands for the processes of cells: they run on the simulated machine, but for `failing`, which end in errors."""

    def __init__(self, monkeypatch, tmp_path, failing=()):
        self.memory, self.beside, self.failing = [], [], failing
        self.machine = simulated_machine.Machine(simulated_machine.Noise(), 0.01, 0, np.random.default_rng(0))
        monkeypatch.setattr(Processes, "fresh", lambda _, task: self.fresh(task))
        monkeypatch.setattr(Processes, "forked", lambda _, task: self.forked(task))
        monkeypatch.setattr(measured_cells, "other_program", self.other_program)
        monkeypatch.setattr(checkpoint, "compute_of", lambda path, device: ("real", "a kernel", None))
        monkeypatch.setattr(
            bench_kernels, "checkpoints",
            lambda methods, folder, device: {name: self.written(tmp_path / f"{name}.json") for name in methods},
        )  # fmt: skip

    def written(self, path):
        manifest.write_json(path, {"size_bytes": 1e6})
        return path

    def other_program(self, wanted):
        self.beside.append(wanted)
        return contextlib.nullcontext()

    def fresh(self, task):
        self.memory.append(Path(task["checkpoints"]["method"]).stem)
        return {"status": "ok", "memory": {"peak_mb": 2.0, "model_mb": 1.0, "available_mb": None}}

    def forked(self, task):
        if any(Path(path).stem in self.failing for path in task["checkpoints"].values()):
            return {"status": "unsupported", "reason": "it cannot run"}
        settings = simulated_machine.settings_of({**task["measuring"], "processes": 1, "precision": 0})
        return simulated_machine.rounds(self.machine, settings)[0]


def test_cells_alone_and_beside_another_program_take_turns(monkeypatch, tmp_path):
    found, simulated = {"methods": [], "comparisons": []}, Simulated(monkeypatch, tmp_path, failing=["nf4"])
    args = bench_measure.parse_arguments(["--methods", "nf4", "rtn-w4", "--comparisons", "3"])
    measured_cells.table(args, lambda part, row: found[part].append(row))
    assert [row["method"] for row in found["methods"]] == ["rtn-w4", "rtn-w4", "nf4", "nf4"]
    assert simulated.beside == [False, True] * 5 and len(found["comparisons"]) == 6
    assert sorted(simulated.memory) == ["float32", "nf4", "rtn-w4"]
    for row in found["methods"][:2] + found["comparisons"]:  # the method that is compared takes RATIO times as long
        assert row["low"] <= simulated_machine.RATIO <= row["high"] and row["known"] and row["seconds"] < 10
        assert row["half_width"] < 0.05 and row["processes"] == 4 and row["disturbed_pairs"] == 0
        assert row["energy_ratio"] is row["reason"] is None
    assert {row["reason"] for row in found["methods"][2:]} == {"it cannot run"}


def test_no_cell_begins_after_the_time(monkeypatch, tmp_path):
    Simulated(monkeypatch, tmp_path)
    args, kept = bench_measure.parse_arguments(["--methods", "--minutes", "0"]), []
    measured_cells.table(args, lambda *row: kept.append(row))
    assert kept == []


def test_processes_that_take_too_long_are_ended(monkeypatch, tmp_path):
    started = []

    def start(arguments, **pipes):
        started.append(subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, text=True, **pipes))
        return started[-1]

    monkeypatch.setattr(processes, "_start", start)
    task, before = {"checkpoints": {"method": "m"}}, time.monotonic()
    with measured_cells.TimedProcesses(tmp_path, None, {}, 0.2) as run:
        for _ in range(2):  # another cell gets a process of its own
            run.begin()
            with pytest.raises(measured_cells.TooLong):
                run.forked(task)
    assert time.monotonic() - before < 30 and [process.poll() for process in started] == [-15, -15]


def test_an_error_in_time_is_no_lack_of_time(monkeypatch, tmp_path):
    monkeypatch.setattr(
        processes, "_start", lambda _, **pipes: subprocess.Popen(["false"], stdout=subprocess.PIPE, text=True, **pipes)
    )
    with (
        measured_cells.TimedProcesses(tmp_path, None, {}, 30) as run,
        pytest.raises(DataError, match="measuring m failed"),
    ):
        run.forked({"checkpoints": {"method": "m"}})


def test_the_other_program_computes_half_of_the_time_and_ends():
    with measured_cells.other_program(True, spell_s=0.01) as others:
        watched = psutil.Process(others[0].pid)
        time.sleep(0.5)  # starts
        before = watched.cpu_times().user
        time.sleep(1.5)
        share = (watched.cpu_times().user - before) / 1.5
    assert 0.05 < share < 0.8  # less where the machine is busy
    assert not any(psutil.pid_exists(other.pid) for other in others)
    with measured_cells.other_program(False) as others:
        assert others == []


def rows_of(width, n, beside=False, ratio=1.0, **fields):
    row = {"beside_another": beside, "ratio": ratio, "low": ratio - width, "high": ratio + width, "half_width": width}
    return [{**row, "seconds": 30.0 + i, **fields} for i in range(n)]


def test_cells_are_told_and_drawn(tmp_path):
    methods = rows_of(0.04, 2) + rows_of(0.1, 1) + rows_of(0.14, 3, beside=True)
    given_up = [{"beside_another": True, "ratio": None, "reason": "it took more than 90 s"}]
    comparisons = rows_of(0.05, 38) + rows_of(0.05, 2, ratio=1.1) + rows_of(0.1, 39, beside=True) + given_up
    assert list(measured_cells.sentences(methods, comparisons)) == [
        "2 of 3 methods alone have a half-width of at most 5%, each within 31 s (goal: 40 s).",
        "38 of 40 intervals of the baseline over itself alone hold 1 (median ±5.0%); 0 given up.",
        "3 of 3 methods beside another program have a half-width of at most 15%, each within 32 s (goal: 40 s).",
        "39 of 39 intervals of the baseline over itself beside another program hold 1 (median ±10.0%); 1 given up.",
    ]
    measured_cells.draw(methods, comparisons, str(tmp_path / "measure.json"))
    assert (tmp_path / "measure.png").stat().st_size > 10_000
