"""The measuring protocol on a virtual clock, with a simulated machine whose joules and seconds are known."""

import contextlib
import csv
import dataclasses
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
from quantwatt.measuring import fresh_process, instruments, pairs, processes, protocol, summary
from quantwatt.measuring.meters import Metering
from quantwatt.measuring.meters.none import NoMeter
from quantwatt.measuring.meters.trace import trace_of
from quantwatt.measuring.settings import Measuring
from quantwatt.models.sampling import Sampling


class Machine:
    """A clock, a load and a meter in one: a run takes `run_s` seconds at `run_w`, all else `idle_w` watts.

    `wrong`: {block: what the meter does to its samples}.
    """

    name, estimated, reads, whole, least_s = "synthetic", False, None, False, 1.0

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
    energy, reason = protocol.summarize_energy([blocks, blocks], idle_w=20.0)
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
    energy, _ = protocol.summarize_energy([blocks])
    assert energy["value"] == pytest.approx(np.mean(per_image))
    assert min(per_image) < energy["low"] < energy["value"] < energy["high"] < max(per_image)
    assert energy["net"] is None and energy["idle_w"] is None
    assert energy["mean_w"] == pytest.approx(200)


def test_one_block_has_no_interval():
    energy, _ = protocol.summarize_energy([blocks_of(Machine(), n_blocks=1)])
    assert (energy["value"], energy["low"], energy["high"]) == (50.0, None, None)


def test_a_void_block_is_kept_repeated_and_left_out_of_the_energy():
    machine = Machine(wrong={1: frozen})
    blocks = blocks_of(machine)
    assert [block.invalid for block in blocks] == [False, True, False, False, False]
    assert blocks[1].reason == "the energy counter did not move" and blocks[1].energy_j is None
    assert protocol.summarize_energy([blocks])[0]["value"] == 50.0
    energy, reason = protocol.summarize_energy([blocks_of(Machine()), blocks[1:2]])
    assert energy is None and "1 of 5 blocks were invalid" in reason  # each process owes a block


def test_void_blocks_are_repeated_only_so_often():
    machine = Machine(wrong=dict.fromkeys(range(100), frozen))
    blocks = blocks_of(machine, invalid_limit=2)
    assert len(blocks) == 3
    energy, reason = protocol.summarize_energy([blocks])
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
    assert (protocol.summarize_energy([blocks])[0] is None) == (verdict == "fail")


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
        "precision": 0.05,
        "limit_s": 400,
        "processes": 4,
        "block_s": 10,
        "blocks": 8,
        "idle_s": 30,
        "phases_s": 40,
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


class Quiet:
    """The surroundings of blocks, of which those in `disturbed` (numbers) are."""

    def __init__(self, disturbed=()):
        self.n, self.disturbed = -1, set(disturbed)

    def start(self):
        self.n += 1

    def stop(self, seconds):
        others = seconds if self.n in self.disturbed else 0.0
        return {"cpu_s": seconds, "others_s": others, "steal_s": 0.0, "running": 1, "disturbed": bool(others)}


class Bench:
    """Sides that take turns on one synthetic machine: {side: (seconds, watts)} of a run, or a list of them."""

    def __init__(self, machine=None, **sides):
        self.machine = machine or Machine()
        self.turns = {side: list(turn) if isinstance(turn, list) else [turn] for side, turn in sides.items()}
        self.n = dict.fromkeys(sides, 0)

    def run(self, side):
        def once():
            turns = self.turns[side]
            self.machine._pass(*turns[self.n[side] % len(turns)])
            self.n[side] += 1

        return once

    def process(self, meter=None, phases=None, first=True, last=True, disturbed=(), **changes):
        """One process's (result, blocks, traces)."""
        machine = self.machine
        return fresh_process.measure_process(
            {side: [self.run(side)] for side in self.turns}, phases or {}, meter or machine, measuring_of(**changes),
            machine.synchronize, first=first, last=last, around=Quiet(disturbed), clock=machine.clock,
            sleep=machine.sleep,
        )  # fmt: skip


def pair_of(method=(0.4, 150.0), baseline=(0.5, 200.0), **options):
    return Bench(method=method, baseline=baseline, **options)


def test_one_process_of_the_protocol_on_the_synthetic_machine():
    bench = pair_of(machine=Machine(wrong={2: frozen}))
    result, placed, traces = bench.process()
    assert result["idle_w"] == [20.0, 20.0]
    assert [b.side for b in placed] == ["method", "baseline", "baseline", "method"] * 2 + ["method", "baseline"]
    assert [b.pair for b in placed] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [b.block.invalid for b in placed].count(True) == 1
    assert result["crosscheck"]["verdict"] == "ok"
    assert set(result["others"]) == {"cpu_share", "gpu_processes"} and 0 <= result["others"]["cpu_share"] <= 1
    assert result["device"]["temperature_after_c"] > result["device"]["temperature_c"]
    assert [name for name, *_ in traces] == ["idle-before", *range(10), "idle-after"]
    rested = traces[0][2].timestamps_s[-1]
    assert rested == 30 and placed[0].block.runs[0][0] == pytest.approx(rested + 2, abs=0.5)  # no rest cools it again
    _, _, traces = pair_of().process(first=False, last=False)
    assert not {name for name, *_ in traces} & {"idle-before", "idle-after"}


def test_runs_have_their_part_of_a_blocks_joules_and_prompts_take_turns():
    bench = pair_of(machine=Machine(wrong={1: frozen}), method=(4.0, 100.0))
    _, placed, _ = bench.process(idle_s=0)
    rows = fresh_process.run_rows(placed, n_prompts=2)
    for block in (b.block for b in placed):
        mine = [row for row in rows if row["block"] == block.block]
        assert [row["prompt"] for row in mine[:3]] == [0, 1, 0]
        joules = [row["energy_j"] for row in mine]
        assert set(joules) == {None} if block.invalid else sum(joules) == pytest.approx(block.energy_j)
    assert {row["seconds"] for row in rows if row["side"] == "method"} == {4.0}


def test_a_process_ends_when_its_spread_or_its_time_says_so():
    _, placed, _ = pair_of().process()
    assert pairs.counts(placed) == {"n": 4, "disturbed": 0}  # all pairs are alike: the fewest that have a spread
    _, placed, _ = pair_of().process(precision=0, limit_s=600)
    assert pairs.counts(placed)["n"] == 8  # 150 s of 20 s each
    noisy = [(seconds, 150.0) for seconds in np.random.default_rng(0).lognormal(np.log(0.4), 0.15, 1000)]
    _, placed, _ = pair_of(method=noisy).process(limit_s=600, block_s=None)
    assert 12 < pairs.counts(placed)["n"] < 60
    _, placed, _ = pair_of().process(limit_s=1)
    assert pairs.counts(placed)["n"] == 2  # at least


def test_disturbed_pairs_are_measured_again_within_the_limit():
    _, placed, _ = pair_of().process(disturbed=[0, 5], limit_s=600)
    assert pairs.counts(placed) == {"n": 6, "disturbed": 2} and len(pairs.log_ratios(placed, quiet=True)) == 4
    _, placed, _ = pair_of().process(disturbed=range(100), limit_s=400)
    assert pairs.counts(placed) == {"n": 6, "disturbed": 6} and len(pairs.log_ratios(placed)) == 6
    assert len(pairs.log_ratios(placed, quiet=True)) == 0 and pairs.ratio([placed])[0] == pytest.approx(0.8)


def test_a_burst_moves_the_ratio_little_and_a_disturbed_pair_not_at_all():
    burst = [(0.4, 150.0)] * 92 + [(1.2, 150.0)] * 8
    _, placed, _ = pair_of(method=burst).process(precision=0, limit_s=800)
    logs = pairs.log_ratios(placed)
    assert np.exp(logs.mean()) > 0.9 and pairs.ratio([placed, placed])[0] == pytest.approx(0.8, rel=0.05)
    blocks = [b.block.block for b in placed if b.side == "method" and b.block.seconds / b.block.images > 0.21]
    again = [replaced(b, disturbed=b.block.block in blocks) for b in placed]
    assert np.exp(pairs.log_ratios(again, quiet=True)) == pytest.approx(0.8)
    assert pairs.ratio([again, again]) == pytest.approx((0.8, 0.8, 0.8))
    noisy = [replaced(b, disturbed=True) for b in pair_of(method=(0.8, 150.0)).process()[1]]
    assert pairs.ratio([again] * 4 + [noisy]) == pytest.approx((0.8, 0.8, 0.8))  # four processes are enough
    assert pairs.ratio([again] * 3 + [noisy])[2] > 1


def replaced(placed, **around):
    block = dataclasses.replace(placed.block, around={**placed.block.around, **around})
    return dataclasses.replace(placed, block=block)


def test_void_blocks_are_no_pairs_of_energy():
    machine = Machine(wrong={1: frozen})
    _, placed, _ = pair_of(machine=machine).process(idle_s=0)
    assert len(pairs.log_ratios(placed)) == len(pairs.log_ratios(placed, energy=True)) + 1
    machine = Machine(wrong=dict.fromkeys(range(1000), frozen))
    _, placed, _ = pair_of(machine=machine).process(idle_s=0)
    assert len(pairs.log_ratios(placed, energy=True)) == 0 and pairs.counts(placed)["n"] == 4
    assert pairs.ratio([placed], energy=True) is None and pairs.ratio([placed])[0] == pytest.approx(0.8)


def phases_of(machine, **seconds_and_watts):
    def phase(seconds, watts):
        return lambda: machine._pass(seconds, watts)

    return {name: {"method": phase(*values), "baseline": phase(*values)} for name, values in seconds_and_watts.items()}


def test_phases_take_turns_in_the_same_pairs_and_add_up():
    machine = Machine()
    parts = phases_of(machine, text=(0.25, 80), denoise=(1.5, 170), decode=(0.25, 100))
    bench = pair_of(machine=machine, method=(2.0, 150.0), baseline=(2.0, 150.0))
    _, placed, traces = bench.process(phases=parts)
    assert [b.part for b in placed[:8:2]] == ["whole", "text", "denoise", "decode"]
    assert {b.part for b in placed[8:]} == {"whole"}  # 40 s of each phase over four processes: one pair
    assert [name for name, *_ in traces][1:10] == [0, 1, *["text"] * 2, *["denoise"] * 2, *["decode"] * 2, 8]
    found = summary.phases_of([placed, placed], {"text": 7}, measuring_of())
    assert found["text"]["latency_s"] == 0.125 and found["text"]["energy_j"] == pytest.approx(10.0)
    assert found["text"]["mean_w"] == pytest.approx(80.0) and found["text"]["tokens"] == 7
    assert "tokens" not in found["decode"] and found["denoise"]["energy_j"] == pytest.approx(127.5)
    assert found["decode"]["ratio"]["latency_s"] == pytest.approx({"value": 1, "low": 1, "high": 1})
    check = pairs.add_up([placed, placed], energy=True)
    assert check["verdict"] == "ok" and check["difference"] == pytest.approx(0)
    assert pairs.add_up([placed, placed], apart=["decode"])["verdict"] == "apart"
    assert pairs.add_up([placed, placed], apart=["text", "denoise", "decode"]) is None


def test_without_a_meter_there_is_latency_and_a_reason_for_no_energy():
    result, placed, traces = pair_of().process(NoMeter(), block_s=None)
    assert "meter: none" in result["energy_reason"] and traces == []
    assert pairs.ratio([placed])[0] == pytest.approx(0.8) and pairs.ratio([placed], energy=True) is None


PEAK = {"peak_mb": 100.0, "reserved_mb": None, "source": "synthetic", "model_mb": 60.0, "available_mb": 1000.0}


def result_of(bench, **options):
    """What measure.py reads back from a process."""
    result, placed, traces = bench.process(**options)
    return json.loads(
        json.dumps(
            {"status": "ok", "reason": None, **result, "blocks": [fresh_process.block_row(block) for block in placed],
             "phases_apart": [], "tokens": {}, "runs": fresh_process.run_rows(placed, 1),
             "traces": [fresh_process.trace_row(*named) for named in traces]},
            allow_nan=False,
        )
    )  # fmt: skip


def test_a_method_beside_its_baseline():
    rounds = [result_of(pair_of()) for _ in range(4)]
    fields = summary.summarize(rounds, PEAK, measuring_of())
    assert fields["energy_j"]["value"] == pytest.approx(30) and fields["baseline"]["energy_j"]["value"] == 50
    assert fields["ratio"]["energy_j"] == pytest.approx({"value": 0.6, "low": 0.6, "high": 0.6})
    assert fields["ratio"]["latency_s"]["value"] == pytest.approx(0.8)
    assert (fields["n_blocks"], fields["n_invalid"], fields["n_processes"]) == (16, 0, 4)
    assert fields["pairs"] == {"n": 16, "disturbed": 0} and fields["known"] and fields["others_share"] == 0
    assert fields["energy_j"]["net"] == pytest.approx(30 - 20 * 0.2)
    memory = {"value": 100, "low": None, "high": None, "source": "synthetic", "model": 60, "reserved": None}
    assert fields["memory_mb"] == memory
    json.dumps(fields, allow_nan=False)
    alone = summary.summarize([result_of(Bench(method=(0.4, 150.0)))] * 2, PEAK, measuring_of())
    assert "ratio" not in alone and alone["energy_j"]["value"] == fields["energy_j"]["value"]


def test_processes_of_one_side_each_make_pairs_too():
    method, baseline = (result_of(Bench(**{side: turn})) for side, turn in
                        (("method", (0.4, 150.0)), ("baseline", (0.5, 200.0))))  # fmt: skip
    joined = summary.joined(method, baseline)
    fields = summary.summarize([joined, joined], PEAK, measuring_of())
    assert fields["ratio"]["latency_s"]["value"] == pytest.approx(0.8)
    assert fields["ratio"]["energy_j"]["value"] == pytest.approx(0.6)
    assert fields["energy_j"]["value"] == pytest.approx(30) and fields["baseline"]["energy_j"]["value"] == 50


def test_measuring_ends_when_the_ratios_are_known():
    wide = [result_of(pair_of(method=(0.4 * factor, 150.0))) for factor in (0.8, 1.2, 0.9, 1.1)]
    same = [result_of(pair_of())] * 4
    assert summary.is_known(same, measuring_of()) and not summary.is_known(wide, measuring_of())
    assert not summary.is_known(same[:3], measuring_of(processes=8))  # the first look is after the fourth
    assert not summary.is_known(same, measuring_of(precision=0))


def test_a_process_that_lacks_good_blocks_leaves_the_energy_empty_and_the_time_there():
    broken = result_of(pair_of(machine=Machine(wrong=dict.fromkeys(range(1000), frozen))))
    fields = summary.summarize([broken, result_of(pair_of())], PEAK, measuring_of())
    assert fields["energy_j"] is None and "did not move" in fields["energy_reason"]
    assert fields["ratio"]["energy_j"] is None and fields["ratio"]["latency_s"]["value"] == pytest.approx(0.8)
    assert fields["ratio_reason"].startswith("the baseline: ") and "did not move" in fields["ratio_reason"]


def test_joules_beside_the_device_are_per_image_and_a_gap_is_none():
    blocks = [{"invalid": False, "images": 10, "beside": {"dram": 5.0, "cpu package": None}}] * 2
    blocks += [{"invalid": True, "images": 10, "beside": {"dram": 900.0}}]
    assert summary.beside(blocks) == {"dram": 0.5, "cpu package": None}


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """Run measure.py on a checkpoint with given contents; its processes are calls of `fake(task)`."""

    def run(checkpoint, compute=("real", "a kernel", None), fake=None, more=(), sampling=None, **changes):
        stub = types.ModuleType("quantwatt.inference.checkpoint")
        stub.compute_of = lambda path, device: compute
        monkeypatch.setitem(sys.modules, "quantwatt.inference.checkpoint", stub)
        monkeypatch.setattr("quantwatt.inference.checkpoint", stub, raising=False)
        fake = fake or (lambda task: pytest.fail("something was measured"))

        def fresh(_, task):
            computed = fresh_process.computed_by(task)
            return computed if "status" in computed else computed | fake(task)

        monkeypatch.setattr(processes.Processes, "forked", lambda self, task: fake(task))
        monkeypatch.setattr(processes.Processes, "fresh", fresh)
        monkeypatch.setattr(processes, "_start", lambda arguments, **pipes: None)
        manifest.write_json(tmp_path / "checkpoint.json", {"size_bytes": 10_000_000, **checkpoint})
        manifest.write_json(tmp_path / "baseline.json", {"status": "ok", "size_bytes": 20_000_000})
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


def test_a_cell_that_is_not_to_be_measured_tells_what_computed_its_images(cell, tmp_path):
    images, more = tmp_path / "images.json", ["--not-measured", str(tmp_path / "images.json")]
    manifest.write_json(images, {"compute": "real", "kernel": "a kernel", "compute_reason": None})
    found = cell({"status": "ok"}, compute=None, more=more)  # nothing is asked for it
    assert (found["status"], found["reason"]) == ("unmeasured", "`measuring` leaves it out")
    assert (found["compute"], found["kernel"]) == ("real", "a kernel")
    manifest.write_json(images, {"compute": "simulated", "kernel": None, "compute_reason": "no kernel"})
    found = cell({"status": "ok"}, compute=None, more=more)
    assert (found["status"], found["reason"]) == ("simulated", "no kernel")
    manifest.write_json(images, {"status": "oom", "reason": "9 GB"})  # which its images say already
    assert cell({"status": "ok"}, compute=None, more=more)["status"] == "unmeasured"


@pytest.mark.parametrize("status", ["unsupported", "oom"])
def test_what_the_checkpoint_could_not_do_is_passed_on(cell, status):
    found = cell({"status": status, "reason": "the reason"})
    assert (found["status"], found["reason"], found["latency_s"]) == (status, "the reason", None)


def sides_of(task):
    return {side: Path(path).stem for side, path in task["checkpoints"].items()}


MEMORY = {"status": "ok", "reason": None, "memory": PEAK}


def test_a_cell_is_measured_in_processes_that_hold_both(cell, tmp_path):
    tasks, machine = [], Machine()

    def fake(task):
        tasks.append(task)
        bench = pair_of(machine=machine)
        return MEMORY if task["memory"] else result_of(bench, first=task["first"], last=task["last"])

    found = cell({"status": "ok"}, fake=fake)
    assert sides_of(tasks[0]) == {"method": "checkpoint"} and tasks[0]["memory"]
    assert [sides_of(task) for task in tasks[1:]] == [{"method": "checkpoint", "baseline": "baseline"}] * 4
    assert [(task["first"], task["last"]) for task in tasks[1:]] == [
        (True, False),
        (False, False),
        (False, False),
        (False, True),
    ]
    assert all(task["measuring"] == found["measuring"] == settings_of() for task in tasks)
    assert found["status"] == "ok" and found["in_pairs"] and found["ratio"]["energy_j"]["value"] == pytest.approx(0.6)
    rows = list(csv.DictReader((tmp_path / "blocks.csv").open()))
    assert len(rows) == 32 and {(row["configuration"], row["process"]) for row in rows} == {
        (name, process) for name in ("method", "baseline") for process in "0123"
    }
    assert [process["latency_s"]["n"] for process in found["processes"]] == pytest.approx([101] * 4, abs=3)
    assert found["memory"]["peak_mb"] == 100.0
    power = list(csv.DictReader((tmp_path / "power.csv").open()))
    times = [float(row["t_s"]) for row in power]
    assert times[0] == 0 and times == sorted(times) and power[0]["block"] == "idle-before"
    runs = list(csv.DictReader((tmp_path / "runs.csv").open()))
    start = min(float(row["t_s"]) for row in runs)
    assert start == pytest.approx(30 + 2, abs=0.5)  # the runs' clock is the samples'
    assert {row["prompt"] for row in runs} == {"0"}


def test_a_sampling_may_say_how_many_are_measured_at_once(cell):
    def fake(task):
        assert task["measuring"]["images_per_batch"] == 8
        return MEMORY if task["memory"] else result_of(pair_of())

    found = cell({"status": "ok"}, fake=fake, sampling={"batch_size": 8}, images_per_batch=None)
    assert found["images_per_batch"] == 8 and found["status"] == "ok"


OOM = {"status": "oom", "reason": "out of memory"}


def test_out_of_memory_is_a_result_and_ends_the_cell(cell):
    tasks = []

    def fake(task):
        tasks.append(task)
        return OOM

    found = cell({"status": "ok"}, fake=fake)
    assert (found["status"], found["reason"], found["latency_s"]) == ("oom", "out of memory", None)
    assert len(tasks) == 1


def alone(task, refused=()):
    """A process of a machine where both sides do not fit together, and the sides in `refused` not at all."""
    if task["memory"]:
        return MEMORY
    sides = list(task["checkpoints"])
    if len(sides) > 1 or sides[0] in refused:
        return OOM
    return result_of(Bench(**{sides[0]: {"method": (0.4, 150.0), "baseline": (0.5, 200.0)}[sides[0]]}))


def test_sides_that_do_not_fit_together_take_turns_in_processes_of_their_own(cell):
    tasks = []
    found = cell({"status": "ok"}, fake=lambda task: tasks.append(task) or alone(task))
    assert [list(task["checkpoints"]) for task in tasks[2:]] == [
        [side] for side in ("method", "baseline", "baseline", "method") * 2
    ]
    assert found["in_pairs"] is False and found["ratio"]["latency_s"]["value"] == pytest.approx(0.8)
    assert found["n_processes"] == 4


def test_both_are_not_loaded_where_the_memory_would_not_hold_them(cell):
    tasks = []

    def fake(task):
        tasks.append(task)
        little = {**MEMORY, "memory": {**PEAK, "available_mb": 180.0}}  # 100 + 1.3 * (60 - 10 + 20) are needed
        return little if task["memory"] else alone(task)

    found = cell({"status": "ok"}, fake=fake)
    assert found["in_pairs"] is False and all(len(task["checkpoints"]) == 1 for task in tasks)


def test_a_baseline_that_does_not_fit_leaves_the_method_measured(cell):
    tasks = []
    found = cell({"status": "ok"}, fake=lambda task: tasks.append(task) or alone(task, refused=["baseline"]))
    assert [list(task["checkpoints"]) for task in tasks[2:]] == [["method"], ["baseline"], *[["method"]] * 3]
    assert found["status"] == "ok" and found["energy_j"]["value"] == pytest.approx(30)
    assert found["baseline"] is None and found["ratio"] == {"energy_j": None, "latency_s": None}
    assert found["ratio_reason"] == "the baseline: out of memory"


def test_the_bar_moves_on_and_keeps_the_watts_while_a_process_says_nothing(capsys):
    with processes.Bar("nf4", measuring_of()) as bar:
        bar.update('{"step": "energy", "watts": 123.4}\n')
        time.sleep(1.5)
        assert bar.update("100\n") == {}  # a library's own line, which happens to be JSON
        assert bar.update('{"step": "energy"}\n') == {"step": "energy"}
        assert bar.bar.n >= 1 and bar.bar.total > 200
    shown = capsys.readouterr().err
    assert "measuring nf4, energy" in shown.splitlines()[-1] and "watts=123.4" in shown and "100\n" in shown


def read_line(line):
    with contextlib.suppress(json.JSONDecodeError):
        return json.loads(line)
    return {}


@pytest.mark.parametrize("kind", ["fresh", "forked"])
@pytest.mark.parametrize(
    ("program", "status"), [("import os; os.kill(os.getpid(), 9)", "oom"), ("raise SystemExit(1)", None)]
)
def test_a_process_that_ends_early(tmp_path, monkeypatch, program, status, kind):
    (tmp_path / "python").write_text(f"#!{sys.executable}\n{program}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    task = {"checkpoints": {"method": "x"}}
    with processes.Processes(tmp_path, types.SimpleNamespace(update=read_line)) as started:
        if status:
            assert getattr(started, kind)(task)["status"] == status
        else:
            with pytest.raises(DataError, match="measuring x failed"):
                getattr(started, kind)(task)


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
    manifest.write_json(tmp_path / "task.json", {"output": str(tmp_path / "result.json"), "memory": False})
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


def test_the_memory_that_is_left_is_the_machines_or_the_cgroups(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    (tmp_path / "cgroups/job/step").mkdir(parents=True)
    roots = {"proc": str(tmp_path / "proc"), "cgroups": str(tmp_path / "cgroups")}
    assert instruments.available_bytes("cpu", **roots) == 5_120_000
    (tmp_path / "cgroups/job/step/memory.max").write_text("max\n")
    (tmp_path / "cgroups/job/memory.max").write_text("3000000\n")
    (tmp_path / "cgroups/job/memory.current").write_text("1000000\n")
    assert instruments.available_bytes("cpu", **roots) == 2_000_000
    assert instruments.available_bytes("cpu", str(tmp_path / "no"), str(tmp_path / "no")) is None
    assert instruments.available_bytes("cpu") > 100_000_000


def test_any_callable_in_three_lines():
    from quantwatt import measure

    short = {"block_s": 0.05, "blocks": 4, "warmup_s": 0, "limit_s": 2}
    found = measure(lambda: sum(range(20_000)), meter="estimate", **short)
    assert found.estimated and found.energy_j["value"] > 0 and len(found.blocks) >= 4
    assert "J [" in str(found) and "(estimated)" in str(found) and "baseline" not in str(found)
    found = measure(lambda: None, meter="none", limit_s=0.1, warmup_s=0)
    assert found.energy_j is None and str(found).endswith("no energy: no meter is configured (meter: none)")
    with pytest.raises(experiment.ConfigurationError, match="measuring: unknown key 'blockz'"):
        measure(lambda: None, blockz=3)


def test_two_callables_are_measured_in_pairs():
    from quantwatt import measure

    short = {"block_s": 0.05, "blocks": 6, "warmup_s": 0, "limit_s": 3}
    found = measure(lambda: sum(range(30_000)), lambda: sum(range(10_000)), meter="estimate", **short)
    assert 2 < found.latency_ratio[0] < 4.5 and found.latency_ratio[1] < found.latency_ratio[0] < found.latency_ratio[2]
    assert 2 < found.energy_ratio[0] < 4.5 and found.pairs["n"] >= 6
    assert "x the baseline" in str(found)


def test_every_key_of_measuring_reaches_the_measure_stage():
    known = schemas.schema("config")["properties"]["measuring"]["properties"].keys() - {"samplings", "methods"}
    assert measuring_of().to_settings().keys() == known | {"meter"}
    assert Measuring.from_settings(measuring_of().to_settings()) == measuring_of()
