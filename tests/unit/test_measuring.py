"""The measuring protocol on a virtual clock, with a simulated machine whose joules and seconds are known."""

import contextlib
import csv
import json
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest

import measure as measure_rule
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment, schemas
from quantwatt.measuring import alternation, fresh_process, instruments, protocol, summary
from quantwatt.measuring.meters import Metering
from quantwatt.measuring.meters.none import NoMeter
from quantwatt.measuring.meters.trace import trace_of
from quantwatt.measuring.settings import Measuring
from quantwatt.models.sampling import Sampling


class Machine:
    """A clock, a load and a meter in one: a run takes `run_s` seconds at `run_w`, all else `idle_w` watts.

    `wrong`: {block: what the meter does to its samples}.
    """

    name, estimated, reads, whole = "synthetic", False, None, False

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
    return protocol.measure_energy(
        machine.run, machine, block_s, n_blocks, 2, machine.synchronize, clock=machine.clock, **options
    )


def test_energy_per_image_is_exact():
    machine = Machine(run_s=0.5, run_w=200)
    blocks = blocks_of(machine)
    assert [(block.images, block.seconds, block.energy_j) for block in blocks] == [(40, 10.0, 2000.0)] * 4
    energy, reason = protocol.summarize_energy([blocks, blocks], 4, idle_w=20.0)
    assert reason is None
    expected = {"value": 50.0, "low": 50.0, "high": 50.0, "net": 45.0, "idle_w": 20.0, "mean_w": 200.0}
    assert energy == pytest.approx(expected)


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
    energy, _ = protocol.summarize_energy([blocks], 8)
    assert energy["value"] == pytest.approx(np.mean(per_image))
    assert min(per_image) < energy["low"] < energy["value"] < energy["high"] < max(per_image)
    assert energy["net"] is None and energy["idle_w"] is None
    assert energy["mean_w"] == pytest.approx(200)


def test_one_block_has_no_interval():
    energy, _ = protocol.summarize_energy([blocks_of(Machine(), n_blocks=1)], 1)
    assert (energy["value"], energy["low"], energy["high"]) == (50.0, None, None)


def test_a_void_block_is_kept_repeated_and_left_out_of_the_energy():
    machine = Machine(wrong={1: frozen})
    blocks = blocks_of(machine)
    assert [block.invalid for block in blocks] == [False, True, False, False, False]
    assert blocks[1].reason == "the energy counter did not move" and blocks[1].energy_j is None
    assert protocol.summarize_energy([blocks], 4)[0]["value"] == 50.0
    energy, reason = protocol.summarize_energy([blocks_of(Machine()), blocks[:4]], 4)
    assert energy is None and "1 of 8 blocks were invalid" in reason  # each process owes its blocks


def test_void_blocks_are_repeated_only_so_often():
    machine = Machine(wrong=dict.fromkeys(range(100), frozen))
    blocks = blocks_of(machine, invalid_limit=2)
    assert len(blocks) == 3
    energy, reason = protocol.summarize_energy([blocks], 4)
    assert energy is None
    assert reason == "3 of 3 blocks were invalid, the last because the energy counter did not move"


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [(1.0, "ok"), (1.029, "ok"), (1.031, "warn"), (0.96, "warn"), (1.051, "fail"), (0.9, "fail")],
)
def test_counter_and_integral_are_compared(gain, verdict):
    machine = Machine(gain=gain)
    blocks = blocks_of(machine, n_blocks=2)
    check = protocol.crosscheck(*(block.trace for block in blocks))
    assert check["verdict"] == verdict
    assert check["difference"] == pytest.approx(gain - 1)
    assert check["integral_j"] == pytest.approx(gain * check["counter_j"])
    assert all(block.invalid == (verdict == "fail") for block in blocks)
    assert (protocol.summarize_energy([blocks], 2)[0] is None) == (verdict == "fail")


def test_a_counter_alone_checks_nothing():
    trace = trace_of([(0.0, None, 0.0), (1.0, None, 50.0)], 0, "rapl")
    assert protocol.crosscheck(trace) is None


def test_idle_power():
    machine = Machine(idle_w=33.0)
    watts, trace = protocol.idle_power(machine, 30, machine.sleep)
    assert watts == pytest.approx(33.0) and trace.energy_j == pytest.approx(990)
    assert protocol.idle_power(Machine(wrong={0: frozen}), 30, Machine().sleep)[0] is None


def test_warm_up_runs_for_its_time_and_at_least_twice():
    machine = Machine(run_s=0.5)
    assert protocol.warm_up(machine.run, 3, machine.synchronize, machine.clock) == (6, None)
    assert protocol.warm_up(machine.run, 0, machine.synchronize, machine.clock) == (2, None)


def test_warm_up_goes_on_until_the_temperature_stands_still():
    machine = Machine(run_s=0.5)

    def temperature():  # °C, nearing 80 with a time constant of 60 s
        return 80 - 40 * np.exp(-machine.clock() / 60)

    _, slope = protocol.warm_up(machine.run, 3, clock=machine.clock, temperature=temperature, steady_s=20)
    # 40 °C per minute at first; below 1 °C per minute after 60 s · ln 40 and half the window.
    assert 0 < slope < 1 and machine.clock() == pytest.approx(60 * np.log(40) + 10, abs=2)
    machine = Machine(run_s=0.5)
    protocol.warm_up(machine.run, 3, clock=machine.clock, temperature=lambda: machine.clock(), steady_s=20)
    assert machine.clock() == protocol.STEADY_LIMIT_S  # it heats for ever: that must end
    machine = Machine(run_s=0.5)
    protocol.warm_up(machine.run, 3, clock=machine.clock, temperature=lambda: None, steady_s=20)
    assert machine.clock() == 3  # no thermometer


def test_warm_up_needs_a_slope_that_whole_degrees_can_show():
    """2.5 °C per minute on a thermometer that tells whole degrees, and runs longer than the window."""
    machine = Machine(run_s=0.5)
    heating = lambda: int(60 + min(machine.clock(), 300) * 2.5 / 60)  # noqa: E731
    protocol.warm_up(machine.run, 3, clock=machine.clock, temperature=heating, steady_s=60)
    assert 300 < machine.clock() < 400
    machine = Machine(run_s=25.0)
    n_runs, slope = protocol.warm_up(machine.run, 3, clock=machine.clock, temperature=lambda: 70, steady_s=20)
    assert (n_runs, slope) == (protocol.STEADY_READINGS, pytest.approx(0, abs=1e-9))


def test_the_thermometer_is_read_once_a_second():
    machine, readings = Machine(run_s=0.001), []
    protocol.warm_up(machine.run, 3, clock=machine.clock, temperature=lambda: readings.append(1) or 50, steady_s=20)
    assert 20 <= len(readings) <= 22 and machine.n_runs > 19_000


def test_spells_hold_whole_cycles():
    machine = Machine(run_s=4.0)
    blocks = protocol.measure_energy(machine.run, machine, 10, 2, 1, clock=machine.clock, cycle=8)
    assert [len(block.runs) for block in blocks] == [8, 8]
    assert len(protocol.measure_latency(machine.run, 10, clock=machine.clock, cycle=8)) == 8


def test_latency_is_that_of_each_run_per_image():
    machine = Machine(run_s=[1.0, 2.0, 3.0, 4.0, 10.0])
    seconds = protocol.measure_latency(machine.run, repeats=5, clock=machine.clock)
    assert seconds.tolist() == [1, 2, 3, 4, 10]
    latency = protocol.summarize_latency([seconds], images_per_run=2)
    assert (latency["median"], latency["mean"], latency["min"], latency["max"]) == (1.5, 2.0, 0.5, 5.0)
    assert (latency["p10"], latency["p90"], latency["n"]) == (pytest.approx(0.7), pytest.approx(3.8), 5)
    assert latency["std"] == pytest.approx(np.std([0.5, 1, 1.5, 2, 5], ddof=1))
    assert latency["low"] < 1.5 < latency["high"]


def test_latency_lasts_for_its_seconds():
    machine = Machine(run_s=0.5)
    assert len(protocol.measure_latency(machine.run, seconds=10, clock=machine.clock)) == 20
    assert len(protocol.measure_latency(machine.run, seconds=0.1, clock=machine.clock)) == 5


def test_latency_waits_for_the_device_before_it_reads_the_clock():
    machine = Machine()
    late = []  # an asynchronous device: the time passes in synchronize
    seconds = protocol.measure_latency(
        lambda: late.append(1),
        repeats=3,
        synchronize=lambda: late and (late.pop(), machine.run()),
        clock=machine.clock,
    )
    assert seconds.tolist() == [0.5, 0.5, 0.5]


def settings_of(**changes):
    """Of measuring, completed: JSON."""
    return {
        "meter": "none",
        "processes": 2,
        "block_s": 10,
        "blocks": 4,
        "idle_s": 30,
        "latency_s": 5,
        "phases_s": 10,
        "warmup_s": 2,
        "steady_s": 0,
        "images_per_batch": 2,
        "prompts": 1,
        "gpus": "first",
        "interval_ms": 10,
        "idle_w": None,
        "full_w": None,
        **changes,
    }


def measuring_of(**changes):
    return Measuring.from_settings(settings_of(**changes))


def process_of(machine, meter=None, make_phases=dict, first=True, last=True, processes=1, **changes):
    """One process's (result, blocks, traces) on the synthetic machine."""
    return fresh_process.measure_process(
        [machine.run], make_phases, meter or machine, measuring_of(processes=processes, **changes), machine.synchronize,
        lambda: {"peak_mb": 100.0, "reserved_mb": None, "source": "synthetic", "model_mb": 60.0},
        first=first, last=last, clock=machine.clock, sleep=machine.sleep,
    )  # fmt: skip


def test_one_process_of_the_protocol_on_the_synthetic_machine():
    machine = Machine(wrong={2: frozen})
    result, blocks, traces = process_of(machine)
    assert set(result["latency_s"]) == {0.5} and result["idle_w"] == [20.0, 20.0]
    assert [block.invalid for block in blocks] == [False, True, False, False, False]
    assert result["crosscheck"]["verdict"] == "ok"
    assert set(result["others"]) == {"cpu_share", "gpu_processes"} and 0 <= result["others"]["cpu_share"] <= 1
    assert result["device"]["temperature_after_c"] > result["device"]["temperature_c"]
    assert [name for name, _ in traces] == ["idle-before", 0, 1, 2, 3, 4, "idle-after"]
    rested = traces[0][1].timestamps_s[-1]
    assert rested == 30 and blocks[0].runs[0][0] == rested + 2 + 5  # warm-up and latency: no rest cools it again
    _, _, traces = process_of(Machine(), first=False, last=False)
    assert [name for name, _ in traces] == [0, 1, 2, 3]


def test_runs_have_their_part_of_a_blocks_joules_and_prompts_take_turns():
    machine = Machine(run_s=4.0, wrong={1: frozen})
    _, blocks, _ = process_of(machine, idle_s=0, blocks=3)
    rows = fresh_process.run_rows(blocks, n_prompts=2)
    assert [row["prompt"] for row in rows] == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    for block in blocks:
        joules = [row["energy_j"] for row in rows if row["block"] == block.block]
        assert joules == [None] * 3 if block.invalid else sum(joules) == pytest.approx(block.energy_j)
    assert {row["seconds"] for row in rows} == {4.0}


def test_phases_are_looped_and_divided():
    machine = Machine(run_s=2.0, run_w=150)

    def phase(seconds, watts):
        return lambda: machine._pass(seconds, watts)

    parts = {"text": phase(0.25, 80), "denoise": phase(1.5, 170), "decode": phase(0.25, 100)}
    result, _, traces = process_of(machine, make_phases=lambda: parts)
    assert [name for name, _ in traces][-4:] == ["text", "denoise", "decode", "idle-after"]
    phases = result["phases"]
    assert phases["text"] == {"latency_s": 0.125, "energy_j": 10.0, "mean_w": 80.0, "runs": 40}
    assert phases["denoise"]["runs"] == 7 and phases["denoise"]["energy_j"] == pytest.approx(127.5)
    check = protocol.check_phases(phases, 150.0, "energy_j")
    assert check["sum"] == pytest.approx(150.0) and check["verdict"] == "ok"
    assert protocol.check_phases(phases, 160.0, "energy_j")["verdict"] == "apart"
    assert protocol.check_phases({}, 160.0, "energy_j") is None
    phases["text"]["energy_j"] = None
    assert protocol.check_phases(phases, 160.0, "energy_j") is None


def test_without_a_meter_there_is_latency_and_a_reason_for_no_energy():
    result, blocks, traces = process_of(Machine(), NoMeter())
    assert len(result["latency_s"]) == 10 and "meter: none" in result["energy_reason"] and blocks == traces == []


def results_of(machine, n=2, **changes):
    """What measure.py reads back from `n` processes."""
    found = []
    for process in range(n):
        result, blocks, traces = process_of(machine, first=process == 0, last=process == n - 1, blocks=2, **changes)
        found.append(
            json.loads(
                json.dumps(
                    {"status": "ok", "reason": None, **result,
                     "blocks": [fresh_process.block_row(block) for block in blocks], "phases_apart": [],
                     "runs": fresh_process.run_rows(blocks, 1),
                     "traces": [fresh_process.trace_row(*named) for named in traces]},
                    allow_nan=False,
                )
            )
        )  # fmt: skip
    return found


def test_a_method_beside_its_baseline():
    mine, other = Machine(run_s=0.4, run_w=150), Machine(run_s=0.5, run_w=200)
    found = {"method": results_of(mine), "baseline": results_of(other)}
    fields = summary.summarize(found, measuring_of())
    assert fields["energy_j"]["value"] == pytest.approx(30) and fields["baseline"]["energy_j"]["value"] == 50
    assert fields["ratio"]["energy_j"] == pytest.approx({"value": 0.6, "low": 0.6, "high": 0.6})
    assert fields["ratio"]["latency_s"]["value"] == pytest.approx(0.8)
    assert (fields["n_blocks"], fields["n_processes"]) == (4, 2)
    assert fields["energy_j"]["net"] == pytest.approx(30 - 20 * 0.2)
    memory = {"value": 100, "low": 100, "high": 100, "source": "synthetic", "model": 60, "reserved": None}
    assert fields["memory_mb"] == memory
    assert fields["sampler_effect"] == pytest.approx({"value": 1, "low": 1, "high": 1})  # as long with it as without
    json.dumps(fields, allow_nan=False)
    alone = summary.summarize({"method": found["method"]}, measuring_of())
    assert "ratio" not in alone and alone["energy_j"] == fields["energy_j"]


def test_a_process_that_lacks_good_blocks_leaves_the_energy_empty_and_the_time_there():
    broken = results_of(Machine(wrong=dict.fromkeys(range(100), frozen)))
    fields = summary.summarize({"method": broken, "baseline": results_of(Machine())}, measuring_of())
    assert fields["energy_j"] is None and "did not move" in fields["energy_reason"]
    assert fields["ratio"]["energy_j"] is None and fields["ratio"]["latency_s"]["value"] == 1
    fields = summary.summarize({"method": results_of(Machine()), "baseline": broken}, measuring_of())
    assert fields["ratio_reason"].startswith("the baseline: ") and "did not move" in fields["ratio_reason"]


def test_joules_beside_the_device_are_per_image_and_a_gap_is_none():
    blocks = [{"invalid": False, "images": 10, "beside": {"dram": 5.0, "cpu package": None}}] * 2
    blocks += [{"invalid": True, "images": 10, "beside": {"dram": 900.0}}]
    assert summary.beside(blocks) == {"dram": 0.5, "cpu package": None}


def test_neighbours_take_turns():
    turns = alternation.schedule(3, ["baseline", "method"])
    assert turns == [("baseline", 0), ("method", 0), ("method", 1), ("baseline", 1), ("baseline", 2), ("method", 2)]


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """Run measure.py on a checkpoint with given contents; its processes are calls of `fake(task)`."""

    def run(checkpoint, compute=("real", "a kernel", None), fake=None, more=(), sampling=None, **changes):
        stub = types.ModuleType("quantwatt.inference.checkpoint")
        stub.compute_of = lambda path, device: compute
        monkeypatch.setitem(sys.modules, "quantwatt.inference.checkpoint", stub)
        monkeypatch.setattr("quantwatt.inference.checkpoint", stub, raising=False)
        fake = fake or (lambda task: pytest.fail("a process was started"))
        monkeypatch.setattr(alternation, "run_process", lambda task, path, bar: fake(task))
        manifest.write_json(tmp_path / "checkpoint.json", checkpoint)
        manifest.write_json(tmp_path / "baseline.json", {"status": "ok"})
        values = {
            "checkpoint": tmp_path / "checkpoint.json",
            "baseline": tmp_path / "baseline.json",
            "sampling": json.dumps({"prompts": "prompts.txt", "steps": 20, "seed": 7, **(sampling or {})}),
            "measuring": json.dumps(settings_of(**changes)),
            **{name: tmp_path / f"{name}.csv" for name in ("power", "blocks", "runs")},
            "output": tmp_path / "measurement.json",
        }
        arguments = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        measure_rule.main([*arguments, *more, "--names", "tiny", "rtn-w4a16", "steps-20"])
        return manifest.read_json(tmp_path / "measurement.json")

    return run


def test_a_simulated_method_is_never_timed(cell, tmp_path):
    found = cell({"status": "ok"}, compute=("simulated", None, "no kernel for W4A16 on cpu"))
    assert (found["status"], found["reason"]) == ("simulated", "no kernel for W4A16 on cpu")
    assert found["latency_s"] is found["energy_j"] is found["memory_mb"] is None
    assert found["energy_reason"] == found["reason"]
    assert (found["model"], found["method"], found["sampling"]) == ("tiny", "rtn-w4a16", "steps-20")
    assert (tmp_path / "power.csv").read_text() == "t_s,watts,sensor_s,configuration,process,block\n"


def test_a_sampling_that_is_not_to_be_measured_starts_no_process(cell):
    found = cell({"status": "ok"}, more=["--not-asked"])
    assert (found["status"], found["reason"]) == ("unmeasured", "measuring.samplings leaves it out")
    assert (found["compute"], found["kernel"]) == ("real", "a kernel")
    found = cell({"status": "ok"}, compute=("simulated", None, "no kernel"), more=["--not-asked"])
    assert found["status"] == "simulated"


@pytest.mark.parametrize("status", ["unsupported", "oom"])
def test_what_the_checkpoint_could_not_do_is_passed_on(cell, status):
    found = cell({"status": status, "reason": "the reason"})
    assert (found["status"], found["reason"], found["latency_s"]) == (status, "the reason", None)


def test_a_cell_is_measured_in_processes_that_take_turns(cell, tmp_path):
    machine, tasks = Machine(run_s=0.5, run_w=200), []

    def fake(task):
        tasks.append(task)
        return results_of(machine, 1)[0]

    found = cell({"status": "ok"}, fake=fake)
    kinds = [Path(task["checkpoint"]).stem for task in tasks]
    assert kinds == ["baseline", "checkpoint", "checkpoint", "baseline"]
    assert [(task["first"], task["last"]) for task in tasks] == [
        (True, False),
        (True, False),
        (False, True),
        (False, True),
    ]
    for task in tasks:
        settings = Measuring.from_settings(task["measuring"])
        assert (settings.blocks_per_process, settings.latency_s_per_process) == (2, 2.5)
        assert task["measuring"] == found["measuring"] == settings_of()  # the totals, as config.yaml has them
    assert found["status"] == "ok" and found["ratio"]["energy_j"]["value"] == pytest.approx(1)
    rows = list(csv.DictReader((tmp_path / "blocks.csv").open()))
    assert len(rows) == 8 and {(row["configuration"], row["process"]) for row in rows} == {
        (name, process) for name in ("method", "baseline") for process in "01"
    }
    assert [process["latency_s"]["n"] for process in found["processes"]] == [10, 10]
    assert {process["memory"]["peak_mb"] for process in found["processes"]} == {100.0}
    power = list(csv.DictReader((tmp_path / "power.csv").open()))
    times = [float(row["t_s"]) for row in power]
    assert times[0] == 0 and times == sorted(times) and power[0]["block"] == "idle-before"
    runs = list(csv.DictReader((tmp_path / "runs.csv").open()))
    start = min(float(row["t_s"]) for row in runs)
    assert start == pytest.approx(30 + 2 + 5)  # the runs' clock is the samples'
    assert {row["prompt"] for row in runs} == {"0"}


def test_a_sampling_may_say_how_many_are_measured_at_once(cell):
    def fake(task):
        assert task["measuring"]["images_per_batch"] == 8
        return results_of(Machine(), 1)[0]

    found = cell({"status": "ok"}, fake=fake, sampling={"batch_size": 8}, images_per_batch=None)
    assert found["images_per_batch"] == 8 and found["status"] == "ok"


OOM = {"status": "oom", "reason": "out of memory"}


def test_out_of_memory_is_a_result_and_ends_the_cell(cell):
    tasks = []

    def fake(task):
        tasks.append(Path(task["checkpoint"]).stem)
        return OOM if tasks[-1] == "checkpoint" else results_of(Machine(), 1)[0]

    found = cell({"status": "ok"}, fake=fake)
    assert (found["status"], found["reason"], found["latency_s"]) == ("oom", "out of memory", None)
    assert tasks == ["baseline", "checkpoint"]


def test_a_baseline_that_does_not_fit_leaves_the_method_measured(cell):
    tasks = []

    def fake(task):
        tasks.append(Path(task["checkpoint"]).stem)
        return OOM if tasks[-1] == "baseline" else results_of(Machine(), 1)[0]

    found = cell({"status": "ok"}, fake=fake)
    assert tasks == ["baseline", "checkpoint", "checkpoint"]
    assert found["status"] == "ok" and found["energy_j"]["value"] == 50
    assert found["baseline"] is None and found["ratio"] == {"energy_j": None, "latency_s": None}
    assert found["ratio_reason"] == "the baseline: out of memory"


def test_the_bar_moves_on_and_keeps_the_watts_while_a_process_says_nothing(capsys):
    with alternation.Bar("nf4", measuring_of()) as bar:
        bar.update('{"step": "energy", "watts": 123.4}\n')
        time.sleep(1.5)
        bar.update("100\n")  # a library's own line, which happens to be JSON
        bar.update('{"step": "energy"}\n')
        assert bar.bar.n >= 1 and bar.bar.total > 300
    shown = capsys.readouterr().err
    assert "measuring nf4, energy" in shown.splitlines()[-1] and "watts=123.4" in shown and "100\n" in shown


def run_task(tmp_path):
    bar = types.SimpleNamespace(update=lambda line: None)
    return alternation.run_process(
        {"checkpoint": "x", "output": str(tmp_path / "r.json")}, str(tmp_path / "t.json"), bar
    )


@pytest.mark.parametrize(
    ("program", "status"), [("import os; os.kill(os.getpid(), 9)", "oom"), ("raise SystemExit(1)", None)]
)
def test_a_process_that_ends_early(tmp_path, monkeypatch, program, status):
    (tmp_path / "python").write_text(f"#!{sys.executable}\n{program}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    if status:
        assert run_task(tmp_path)["status"] == status
    else:
        with pytest.raises(DataError, match="measuring x failed"):
            run_task(tmp_path)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("shapes differ"), None),
    ],
)
def test_out_of_memory_in_a_process_is_told_and_a_bug_is_not(tmp_path, monkeypatch, error, status):
    def fail(task):
        raise error

    monkeypatch.setattr(fresh_process, "measure", fail)
    manifest.write_json(tmp_path / "task.json", {"output": str(tmp_path / "result.json")})
    with contextlib.nullcontext() if status else pytest.raises(RuntimeError, match="shapes differ"):
        fresh_process.main([tmp_path / "task.json"])
        result = manifest.read_json(tmp_path / "result.json")
        assert result["status"] == status and result["reason"]


def test_a_meter_that_cannot_be_read_leaves_the_energy_empty_with_the_reason(capsys):
    meter, reason = instruments.choose_meter(Metering("estimate"), 10, "cpu")
    assert meter.name == "none" and "set idle_w and full_w" in reason
    assert "no energy:" in capsys.readouterr().err


def test_every_method_gets_the_same_first_prompts_and_seeds(tmp_path):
    (tmp_path / "prompts.txt").write_text("a circle\na square\na ring\n")
    sampling = Sampling(prompts=str(tmp_path / "prompts.txt"), steps=20, seed=7)
    assert fresh_process.batches_of(None, sampling, 2, 1) == [(["a circle", "a square"], [7, 8])]
    assert fresh_process.batches_of(None, sampling, 1, 2) == [(["a circle"], [7]), (["a square"], [8])]
    with pytest.raises(DataError, match="3 prompts are too few"):
        fresh_process.batches_of(None, sampling, 2, 2)
    with pytest.raises(DataError, match="cannot be read"):
        fresh_process.batches_of(None, Sampling(prompts="nowhere.txt", steps=20), 1, 1)


def test_the_peak_memory_of_a_process_is_its_own():
    """Not its parent's, whose peak a child starts from in Linux's ru_maxrss."""
    code = (
        "import numpy; from quantwatt.measuring.instruments import peak_resident_bytes\n"
        "before = peak_resident_bytes(); block = numpy.ones(60_000_000, numpy.uint8)\n"
        "print(before, peak_resident_bytes())"
    )
    held = np.ones(300_000_000, np.uint8)  # in this process, the parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(measure_rule.__file__).parent, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert 0.9 * 60e6 < after - before < 1.2 * 60e6 and after < held.nbytes


def test_memory_has_an_interval_over_processes():
    peaks = [{"peak_mb": peak, "reserved_mb": None, "source": "", "model_mb": 9.0} for peak in (100.0, 101.0, 102.0)]
    memory = summary.summarize_memory(peaks)
    half = 4.302653 / 3**0.5  # Student's t of two degrees of freedom, deviation 1
    assert [memory[key] for key in ("value", "low", "high")] == pytest.approx([101, 101 - half, 101 + half])
    assert summary.summarize_memory(peaks[:1])["low"] is None


def test_any_callable_in_three_lines():
    from quantwatt import measure

    found = measure(lambda: sum(range(20_000)), block_s=0.3, blocks=2, latency_s=0.2, warmup_s=0, meter="estimate")
    assert found.estimated and found.energy_j["value"] > 0 and len(found.blocks) >= 2
    assert "J [" in str(found) and "(estimated)" in str(found)
    found = measure(lambda: None, meter="none", latency_s=0.01, warmup_s=0)
    assert found.energy_j is None and str(found).endswith("no energy: no meter is configured (meter: none)")
    with pytest.raises(experiment.ConfigurationError, match="measuring: unknown key 'blockz'"):
        measure(lambda: None, blockz=3)


def test_every_key_of_measuring_reaches_the_measure_stage():
    known = schemas.schema("config")["properties"]["measuring"]["properties"].keys() - {"samplings"}
    assert measuring_of().to_settings().keys() == known | {"meter"}
    assert Measuring.from_settings(measuring_of().to_settings()) == measuring_of()
