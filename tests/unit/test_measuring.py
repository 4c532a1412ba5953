"""The measuring protocol on a virtual clock: a machine whose every joule and second is known."""

import contextlib
import csv
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import measure
from quantwatt import manifest, measuring
from quantwatt.meters.none import NoMeter
from quantwatt.meters.trace import trace_of


class Machine:
    """A clock, a load and a meter in one: a run takes `run_s` seconds at `run_w`, all else `idle_w` watts.

    `wrong`: {block: what the meter does to its samples}.
    """

    name, estimated, reads = "synthetic", False, None

    def __init__(self, run_s=0.5, run_w=200.0, idle_w=20.0, gain=1.0, wrong=None):
        self.run_s, self.run_w, self.idle_w, self.gain, self.wrong = run_s, run_w, idle_w, gain, wrong or {}
        self.now, self.joules, self.n_runs, self.n_traces, self.n_synchronized = 0.0, 0.0, 0, 0, 0
        self.samples = None

    def clock(self):
        return self.now

    def run(self):
        seconds = self.run_s[self.n_runs % len(self.run_s)] if isinstance(self.run_s, list) else self.run_s
        self.n_runs += 1
        self._pass(seconds, self.run_w)

    def sleep(self, seconds):
        self._pass(seconds, self.idle_w)

    def synchronize(self):
        self.n_synchronized += 1

    def _pass(self, seconds, watts):
        if self.samples is not None:
            self.samples.append((self.now, watts * self.gain, self.joules))
        self.now += seconds
        self.joules += seconds * watts

    def start(self):
        self.samples = []

    def stop(self):
        samples, self.samples = [*self.samples, (self.now, 0.0, self.joules)], None
        change = self.wrong.get(self.n_traces, lambda samples: samples)
        self.n_traces += 1
        return trace_of(change(samples), 0, "synthetic")

    def provenance(self):
        return {"meter": self.name, "interval_ms": 1.0, "fake": False, "temperature_c": 50 + self.n_traces}

    def close(self):
        self.closed = True


def frozen(samples):
    return [(t, watts, 1.0) for t, watts, _ in samples]


def blocks_of(machine, n_blocks=4, block_s=10, **options):
    return measuring.measure_energy(
        machine.run, machine, block_s, n_blocks, 2, machine.synchronize, clock=machine.clock, **options
    )


def test_energy_per_image_is_exact():
    machine = Machine(run_s=0.5, run_w=200)
    blocks = blocks_of(machine)
    assert [(block.images, block.seconds, block.energy_j) for block in blocks] == [(40, 10.0, 2000.0)] * 4
    energy, reason = measuring.summarize_energy(blocks, 4, idle_w=20.0)
    assert reason is None
    assert energy == {"value": 50.0, "low": 50.0, "high": 50.0, "net": 45.0, "idle_w": 20.0, "mean_w": 200.0}


def test_a_block_ends_with_a_whole_run_and_the_device_is_waited_for():
    machine = Machine(run_s=3.0)
    block = blocks_of(machine, n_blocks=1)[0]
    assert (block.seconds, block.images) == (12.0, 8)
    assert machine.n_synchronized == 5  # before the block and after each run
    assert blocks_of(Machine(run_s=60.0), n_blocks=1)[0].images == 2


def test_the_interval_is_over_blocks_and_holds_the_mean():
    machine = Machine(run_s=[4.0, 5.0, 6.0, 7.0, 8.0])
    blocks = blocks_of(machine, n_blocks=8, block_s=1)
    per_image = [block.energy_j / block.images for block in blocks]
    energy, _ = measuring.summarize_energy(blocks, 8)
    assert energy["value"] == pytest.approx(np.mean(per_image))
    assert min(per_image) < energy["low"] < energy["value"] < energy["high"] < max(per_image)
    assert energy["net"] is None and energy["idle_w"] is None
    assert energy["mean_w"] == pytest.approx(200)


def test_one_block_has_no_interval():
    energy, _ = measuring.summarize_energy(blocks_of(Machine(), n_blocks=1), 1)
    assert (energy["value"], energy["low"], energy["high"]) == (50.0, None, None)


def test_a_void_block_is_kept_repeated_and_left_out_of_the_energy():
    machine = Machine(wrong={1: frozen})
    blocks = blocks_of(machine)
    assert [block.void for block in blocks] == [False, True, False, False, False]
    assert blocks[1].reason == "the energy counter did not move" and blocks[1].energy_j is None
    assert measuring.summarize_energy(blocks, 4)[0]["value"] == 50.0


def test_void_blocks_are_repeated_only_so_often():
    machine = Machine(wrong=dict.fromkeys(range(100), frozen))
    blocks = blocks_of(machine, void_limit=2)
    assert len(blocks) == 3
    energy, reason = measuring.summarize_energy(blocks, 4)
    assert energy is None
    assert reason == "3 of 3 blocks were void, the last because the energy counter did not move"


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [(1.0, "ok"), (1.029, "ok"), (1.031, "warn"), (0.96, "warn"), (1.051, "fail"), (0.9, "fail")],
)
def test_counter_and_integral_are_compared(gain, verdict):
    machine = Machine(gain=gain)
    blocks = blocks_of(machine, n_blocks=2)
    check = measuring.crosscheck(*(block.trace for block in blocks))
    assert check["verdict"] == verdict
    assert check["difference"] == pytest.approx(gain - 1)
    assert check["integral_j"] == pytest.approx(gain * check["counter_j"])
    assert all(block.void == (verdict == "fail") for block in blocks)
    assert (measuring.summarize_energy(blocks, 2)[0] is None) == (verdict == "fail")


def test_a_counter_alone_checks_nothing():
    trace = trace_of([(0.0, None, 0.0), (1.0, None, 50.0)], 0, "rapl")
    assert measuring.crosscheck(trace) is None


def test_idle_power():
    machine = Machine(idle_w=33.0)
    watts, trace = measuring.idle_power(machine, 30, machine.sleep)
    assert watts == pytest.approx(33.0) and trace.energy_j == pytest.approx(990)
    assert measuring.idle_power(Machine(wrong={0: frozen}), 30, Machine().sleep)[0] is None


def test_warm_up_runs_for_its_time_and_at_least_twice():
    machine = Machine(run_s=0.5)
    assert measuring.warm_up(machine.run, 3, machine.synchronize, machine.clock) == 6
    assert measuring.warm_up(machine.run, 0, machine.synchronize, machine.clock) == 2


def test_latency_is_that_of_each_run_per_image():
    machine = Machine(run_s=[1.0, 2.0, 3.0, 4.0, 10.0])
    seconds = measuring.measure_latency(machine.run, repeats=5, clock=machine.clock)
    assert seconds.tolist() == [1, 2, 3, 4, 10]
    latency = measuring.summarize_latency(seconds, images_per_run=2)
    assert (latency["median"], latency["mean"], latency["min"], latency["max"]) == (1.5, 2.0, 0.5, 5.0)
    assert (latency["p10"], latency["p90"], latency["n"]) == (pytest.approx(0.7), pytest.approx(3.8), 5)
    assert latency["std"] == pytest.approx(np.std([0.5, 1, 1.5, 2, 5], ddof=1))
    assert 0.5 <= latency["low"] <= 1.5 <= latency["high"] <= 5.0


def test_latency_lasts_for_its_seconds():
    machine = Machine(run_s=0.5)
    assert len(measuring.measure_latency(machine.run, seconds=10, clock=machine.clock)) == 20
    assert len(measuring.measure_latency(machine.run, seconds=0.1, clock=machine.clock)) == 5


def test_latency_waits_for_the_device_before_it_reads_the_clock():
    machine = Machine()
    late = []  # an asynchronous device: the time passes in synchronize
    seconds = measuring.measure_latency(
        lambda: late.append(1),
        repeats=3,
        synchronize=lambda: late and (late.pop(), machine.run()),
        clock=machine.clock,
    )
    assert seconds.tolist() == [0.5, 0.5, 0.5]


def settings_of(**changes):
    return {
        "meter": "none",
        "block_s": 10,
        "blocks": 4,
        "idle_s": 30,
        "latency_s": 5,
        "warmup_s": 2,
        "images_per_batch": 2,
        **changes,
    }


def test_the_whole_protocol_on_the_synthetic_machine(tmp_path):
    machine = Machine(wrong={2: frozen})
    fields, blocks, traces = measure.measure_pipeline(
        machine.run, machine, settings_of(), machine.synchronize, machine.clock, machine.sleep
    )
    assert fields["latency_s"]["median"] == 0.25
    assert fields["energy_j"]["value"] == 50.0 and fields["energy_j"]["net"] == pytest.approx(45.0)
    assert fields["n_blocks"] == 4 and len(fields["blocks"]) == 5
    assert fields["crosscheck"]["verdict"] == "ok"
    assert fields["device"]["temperature_after_c"] > fields["device"]["temperature_c"]
    assert [name for name, _ in traces] == ["idle-before", 0, 1, 2, 3, 4, "idle-after"]
    json.dumps(fields, allow_nan=False)

    measure.write_blocks(tmp_path / "blocks.csv", blocks)
    rows = list(csv.DictReader(open(tmp_path / "blocks.csv")))
    assert [row["void"] for row in rows] == ["False", "True", "False", "False", "False"]
    assert rows[0] | {"reason": ""} == rows[0] and float(rows[0]["energy_j"]) == 2000.0
    assert rows[1]["energy_j"] == "" and rows[1]["reason"]

    measure.write_power(tmp_path / "power.csv", traces)
    rows = list(csv.DictReader(open(tmp_path / "power.csv")))
    assert list(rows[0]) == ["t_s", "watts", "block"]
    assert (rows[0]["t_s"], float(rows[0]["watts"]), rows[0]["block"]) == ("0.000000", 20.0, "idle-before")
    assert {row["block"] for row in rows} == {"idle-before", *"01234", "idle-after"}


def test_without_a_meter_there_is_latency_and_a_reason_for_no_energy(tmp_path):
    machine = Machine()
    fields, blocks, traces = measure.measure_pipeline(
        machine.run, NoMeter(), settings_of(), machine.synchronize, machine.clock, machine.sleep
    )
    assert fields["latency_s"]["n"] == 10 and fields["energy_j"] is None
    assert "meter: none" in fields["energy_reason"] and blocks == traces == []
    measure.write_power(tmp_path / "power.csv", traces)
    assert (tmp_path / "power.csv").read_text() == "t_s,watts,block\n"


def test_without_idle_seconds_there_is_no_net_energy():
    machine = Machine()
    fields, _, traces = measure.measure_pipeline(
        machine.run, machine, settings_of(idle_s=0), machine.synchronize, machine.clock, machine.sleep
    )
    assert fields["energy_j"]["value"] == 50.0 and fields["energy_j"]["net"] is None
    assert [name for name, _ in traces] == [0, 1, 2, 3]


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """Run measure.py on a checkpoint with given contents; returns its measurement."""

    def run(checkpoint, compute=("real", "a kernel", None), load=None, **changes):
        stub = types.ModuleType("quantwatt.checkpoint")
        stub.compute_of = lambda path, device: compute
        stub.load_pipeline = load or (lambda path, device: pytest.fail("a pipeline was loaded"))
        monkeypatch.setitem(sys.modules, "quantwatt.checkpoint", stub)
        monkeypatch.setattr("quantwatt.checkpoint", stub, raising=False)
        manifest.write_json(tmp_path / "checkpoint.json", checkpoint)
        (tmp_path / "prompts.txt").write_text("a circle\na square\na ring\n")
        sampling = {"prompts": str(tmp_path / "prompts.txt"), "seed": 7}
        values = {
            "checkpoint": tmp_path / "checkpoint.json",
            "sampling": json.dumps(sampling),
            "measuring": json.dumps(settings_of(**changes)),
            "output": tmp_path / "measurement.json",
            "power": tmp_path / "power.csv",
            "blocks": tmp_path / "blocks.csv",
        }
        arguments = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        measure.main([*arguments, "--names", "tiny", "rtn-w4a16", "steps-20"])
        assert (tmp_path / "power.csv").exists() and (tmp_path / "blocks.csv").exists()
        return manifest.read_json(tmp_path / "measurement.json")

    return run


def test_a_simulated_method_is_never_timed(cell, monkeypatch):
    monkeypatch.setattr(measuring, "measure_latency", lambda *a, **k: pytest.fail("it was timed"))
    monkeypatch.setattr(measure, "memory_of_processes", lambda *a: pytest.fail("it was loaded"))
    found = cell({"status": "ok"}, compute=("simulated", None, "no kernel for W4A16 on cpu"))
    assert (found["status"], found["reason"]) == ("simulated", "no kernel for W4A16 on cpu")
    assert found["latency_s"] is found["energy_j"] is found["memory_mb"] is None
    assert found["energy_reason"] == found["reason"]
    assert (found["model"], found["method"], found["sampling"]) == ("tiny", "rtn-w4a16", "steps-20")


@pytest.mark.parametrize("status", ["unsupported", "oom"])
def test_what_the_checkpoint_could_not_do_is_passed_on(cell, status):
    found = cell({"status": status, "reason": "the reason"})
    assert (found["status"], found["reason"], found["latency_s"]) == (status, "the reason", None)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "oom"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
            "oom",
        ),
        (MemoryError(), "oom"),
        (RuntimeError("shapes differ"), None),
    ],
)
def test_out_of_memory_is_a_result_and_a_bug_is_not(cell, monkeypatch, error, status):
    monkeypatch.setattr(measure, "memory_of_processes", lambda *a: None)

    def load(path, device):
        raise error

    with contextlib.nullcontext() if status else pytest.raises(RuntimeError, match="shapes differ"):
        found = cell({"status": "ok"}, load=load)
        assert found["status"] == status and found["reason"] and found["latency_s"] is None


def test_a_meter_that_cannot_be_read_leaves_the_energy_empty_with_the_reason(capsys):
    meter, reason = measure.choose_meter(settings_of(meter="estimate"), "cpu")
    assert meter.name == "none" and "set idle_w and full_w" in reason
    assert "no energy:" in capsys.readouterr().err


def test_every_method_gets_the_same_first_prompts_and_seeds(tmp_path):
    (tmp_path / "prompts.txt").write_text("a circle\na square\na ring\n")
    sampling = {"prompts": str(tmp_path / "prompts.txt"), "seed": 7}
    assert measure.first_batch(sampling, 2) == (["a circle", "a square"], [7, 8])
    with pytest.raises(manifest.DataError, match="3 prompts are too few"):
        measure.first_batch(sampling, 4)
    with pytest.raises(manifest.DataError, match="cannot be read"):
        measure.first_batch({**sampling, "prompts": "nowhere.txt"}, 1)


def test_the_peak_memory_of_a_process_is_its_own():
    """Not its parent's, whose peak a child starts from in Linux's ru_maxrss."""
    code = (
        "import numpy, measure\n"
        "before = measure.peak_resident_bytes(); block = numpy.ones(60_000_000, numpy.uint8)\n"
        "print(before, measure.peak_resident_bytes())"
    )
    held = np.ones(300_000_000, np.uint8)  # in this process, the parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(measure.__file__).parent, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert 0.9 * 60e6 < after - before < 1.2 * 60e6 and after < held.nbytes


def test_memory_has_an_interval_over_processes():
    memory = measure.summarize_memory([100e6, 101e6, 102e6], "peak RSS of a fresh process")
    half = 4.302653 / 3**0.5  # Student's t of two degrees of freedom, deviation 1
    assert [memory[key] for key in ("value", "low", "high")] == pytest.approx([101, 101 - half, 101 + half])
    assert measure.summarize_memory([100e6], "x")["low"] is None
