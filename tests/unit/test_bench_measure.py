"""The benchmark of the power sampler's overhead, with the fake NVML."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_measure
from quantwatt.artifacts.errors import DataError

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
