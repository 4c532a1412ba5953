"""The CPU meters, the arithmetic of power traces, and the registry; no hardware is read except /proc."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantwatt.measuring import cpus, meters
from quantwatt.measuring.meters import (
    CompositeMeter,
    Metering,
    MeterUnavailable,
    estimate,
    open_meter,
    rapl,
    sampler,
    secondary_meters,
)
from quantwatt.measuring.meters.sampler import SampledMeter, Sampler, Sampling
from quantwatt.measuring.meters.trace import hold_integral_j, trace_of

RANGE_UJ = 262_143_328_850


class DrivenSampler:
    """A sampler that reads when `tick` is called, at the time given."""

    def __init__(self, module, arguments, interval_s):
        self.interval_s, self.now_s = interval_s, 100.0
        self.read = {"rapl": rapl, "estimate": estimate}[module].reader(**arguments)

    def start(self):
        self.sampling = Sampling(self.read, lambda: round(self.now_s * 1e9))
        self.sampling.take()

    def tick(self, seconds):
        self.now_s += seconds
        self.sampling.take()

    def stop(self):
        return {"samples": self.sampling.samples, "n_late": 0, "fault": self.sampling.fault}

    def close(self):
        pass


@pytest.fixture
def powercap(tmp_path):
    """The kernel's tree: two packages, one with core and dram, psys, and the mmio copy of package 0."""
    names = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    for folder, name in names.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "name").write_text(name + "\n")
        (tmp_path / folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        (tmp_path / folder / "energy_uj").write_text("1000000\n")
    return tmp_path


def spend(powercap, **joules):
    """Advance counters, wrapping as the hardware does: spend(tree, package0=3)."""
    folders = {"package0": "intel-rapl:0", "core": "intel-rapl:0:0", "dram": "intel-rapl:0:1"}
    folders |= {"package1": "intel-rapl:1", "psys": "intel-rapl:2", "mmio": "intel-rapl-mmio:0"}
    for name, value in joules.items():
        path = powercap / folders[name] / "energy_uj"
        path.write_text(f"{(int(path.read_text()) + round(value * 1e6)) % RANGE_UJ}\n")


def test_rapl_sums_packages_and_memory_only(powercap):
    meter = rapl.open_meter(Metering(), None, DrivenSampler, powercap)
    meter.start()
    spend(powercap, package0=3, core=2, dram=0.5, package1=7, psys=100, mmio=3)
    meter._sampler.tick(2)
    spend(powercap, package0=1)
    meter._sampler.tick(1)
    trace = meter.stop()
    assert trace.energy_j == pytest.approx(11.5)
    assert trace.watts[:2] == pytest.approx([5.25, 1.0])
    assert trace.fault is None and trace.watts_from_counter
    assert meter.provenance()["domains"] == [
        "package-0 (intel-rapl:0)",
        "dram (intel-rapl:0:1)",
        "package-1 (intel-rapl:1)",
    ]


@pytest.mark.parametrize(("domains", "joules"), [("all", 11.5), ("package", 11.0), ("dram", 0.5)])
def test_rapl_reads_packages_or_memory_alone_where_told(powercap, domains, joules):
    meter = rapl.open_meter(Metering(domains=domains), None, DrivenSampler, powercap)
    meter.start()
    spend(powercap, package0=4, dram=0.5, package1=7, psys=100)
    meter._sampler.tick(1)
    assert meter.stop().energy_j == pytest.approx(joules)


def test_rapl_without_the_domain_asked_for_is_refused(powercap):
    shutil.rmtree(powercap / "intel-rapl:0:1")
    with pytest.raises(MeterUnavailable, match="named dram"):
        rapl.open_meter(Metering(domains="dram"), None, DrivenSampler, powercap)
    with pytest.raises(MeterUnavailable, match="all, package, dram"):
        rapl.open_meter(Metering(domains="gpu"), None, DrivenSampler, powercap)


def test_rapl_whose_file_goes_away_has_no_energy(powercap):
    meter = rapl.open_meter(Metering(), None, DrivenSampler, powercap)
    meter.start()
    spend(powercap, package0=4)
    meter._sampler.tick(1)
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    meter._sampler.tick(1)
    trace = meter.stop()
    assert trace.energy_j is None and "intel-rapl:1/energy_uj cannot be read" in trace.fault
    assert trace.n_missed == 1


def test_rapl_counts_every_wrap_of_the_counter(powercap):
    meter = rapl.open_meter(Metering(), None, DrivenSampler, powercap)
    meter.start()
    for _ in range(3):
        spend(powercap, package0=RANGE_UJ / 1e6 * 0.75)
        meter._sampler.tick(100)
    assert meter.stop().energy_j == pytest.approx(3 * 0.75 * RANGE_UJ / 1e6)


def test_rapl_counter_that_stands_still_has_no_energy(powercap):
    meter = rapl.open_meter(Metering(), None, DrivenSampler, powercap)
    meter.start()
    meter._sampler.tick(5)
    trace = meter.stop()
    assert trace.energy_j is None and trace.fault == "the energy counter did not move"


def test_a_rapl_counter_that_falls_is_no_wrap_of_so_many_joules(powercap):
    meter = rapl.open_meter(Metering(domains="package"), None, DrivenSampler, powercap)
    spend(powercap, package0=50_004)
    meter.start()
    spend(powercap, package0=5)
    meter._sampler.tick(1)
    (powercap / "intel-rapl:0" / "energy_uj").write_text("1000000\n")  # the driver was loaded anew
    meter._sampler.tick(1)
    trace = meter.stop()
    assert trace.energy_j is None and trace.fault.startswith("the energy counter rose by 212")  # kJ


def test_one_rapl_domain_of_several_that_stands_still_has_no_energy(powercap, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rapl.time, "perf_counter", lambda: now[0])
    for frozen_s, joules in ((0.9, 6), (1.0, None)):
        meter = rapl.open_meter(Metering(domains="package"), None, DrivenSampler, powercap)
        meter.start()
        for step in (0.1, frozen_s):
            spend(powercap, package0=3, package1=0 if step == frozen_s else 0.001)
            now[0] += step
            meter._sampler.tick(step)
        trace = meter.stop()
        assert trace.energy_j == (joules and pytest.approx(joules + 0.001))
    assert "intel-rapl:1/energy_uj stood still for 1.0 s" in trace.fault


def test_rapl_names_the_unreadable_file_and_the_command(powercap, monkeypatch):
    denied = powercap / "intel-rapl:0" / "energy_uj"
    read_text = type(denied).read_text

    def deny(path, *args):
        if path == denied:
            raise PermissionError(13, "Permission denied")
        return read_text(path, *args)

    monkeypatch.setattr(type(denied), "read_text", deny)  # root may read any file
    with pytest.raises(MeterUnavailable, match=f"sudo chmod a\\+r {denied}"):
        rapl.open_meter(Metering(), None, DrivenSampler, powercap)


def test_rapl_without_domains_says_what_to_choose(tmp_path):
    with pytest.raises(MeterUnavailable, match="no RAPL energy counter.*estimate or none"):
        rapl.open_meter(Metering(), None, DrivenSampler, tmp_path)


def test_rapl_through_its_sampling_process(powercap):
    meter = rapl.open_meter(Metering(), base=powercap)
    meter.start()
    spend(powercap, package0=42)
    trace = meter.stop()
    meter.close()
    assert trace.energy_j == pytest.approx(42)


@pytest.mark.parametrize(
    ("wattages", "said"),
    [
        ({}, "set idle_w and full_w"),
        ({"idle_w": 10}, "set idle_w"),
        ({"idle_w": 65, "full_w": 10}, "0 < idle_w"),
    ],
)
def test_estimate_needs_two_wattages(wattages, said):
    with pytest.raises(MeterUnavailable, match=said):
        open_meter(Metering("estimate", **wattages))


def test_estimate_reads_the_busy_fields_of_proc():
    machine = "cpu  100 20 30 4000 500 6 7 80 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert estimate.machine_ticks(machine) == 100 + 20 + 30 + 6 + 7  # neither idle, iowait nor stolen
    process = "7 (a (b) c) S 1 7 7 0 -1 4194304 5 6 7 8 1000 200 30 4 20 0 3 0 99 1 2\n"
    assert (cpus.process_ticks(process), estimate.child_ticks(process)) == (1234, 34)


@pytest.mark.parametrize(("busy_cpus", "watts"), [(0, 10.0), (1, 40.0), (2, 70.0)])
def test_estimate_lies_between_the_wattages(tmp_path, monkeypatch, busy_cpus, watts):
    stat, now = tmp_path / "stat", [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    read = estimate.reader(str(stat), "machine", idle_w=10, full_w=70, n_cpus=2)
    energies = []
    for now[0] in (0.0, 5.0):
        ticks = round(busy_cpus * now[0] * os.sysconf("SC_CLK_TCK"))
        stat.write_text(f"cpu  {ticks} 0 0 9 9 0 0 0 0 0\n")
        energies.append(read()[1])
    assert energies[1] - energies[0] == pytest.approx(5 * watts)


def test_estimate_counts_this_process_and_is_marked():
    meter = open_meter(Metering("estimate", idle_w=1.0, full_w=1.0 + 10 * os.cpu_count()), device="cpu")
    assert meter.estimated
    meter.start()
    busy = time.process_time()
    while time.process_time() - busy < 0.5:
        pass
    trace = meter.stop()
    meter.close()
    seconds = trace.timestamps_s[-1] - trace.timestamps_s[0]
    assert trace.energy_j == pytest.approx(seconds * 1 + 0.5 * 10, abs=0.7)  # 10 W a CPU
    assert "CPU time of the process" in trace.source


def test_no_meter_has_a_reason_and_no_energy():
    meter = open_meter("none")
    meter.start()
    trace = meter.stop()
    assert trace.energy_j is None and "meter: none" in trace.fault and not meter.estimated


def test_an_unknown_meter_is_refused_with_the_known_ones():
    with pytest.raises(MeterUnavailable, match="nvml, amdsmi, rapl, estimate, none"):
        open_meter("wattmeter")


def test_a_meter_of_another_device_is_refused():
    with pytest.raises(MeterUnavailable, match="reads the cpu, not the cuda"):
        open_meter("estimate", {"idle_w": 10, "full_w": 65}, "cuda")


def test_opening_a_meter_imports_no_other_meter_and_no_torch():
    code = (
        "import sys; from quantwatt.measuring.meters import Metering, open_meter\n"
        "open_meter(Metering()); print(*sys.modules)"
    )
    scripts = meters.__file__.rpartition("/quantwatt/")[0]
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": scripts},
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.split()
    assert "quantwatt.measuring.meters.none" in loaded
    assert not {"torch", "pynvml", "quantwatt.measuring.meters.nvml", "quantwatt.measuring.meters.rapl"} & set(loaded)


def test_a_sampling_process_that_fails_is_reported():
    broken = Sampler("rapl", {"domains": [["/nowhere/energy_uj", 1]]}, 0.1)
    with pytest.raises(MeterUnavailable, match="ended early.*its error is printed above"):
        broken.start()
    broken.close()


def test_a_meter_whose_process_does_not_start_says_so_in_its_trace():
    meter = SampledMeter(Sampler("rapl", {"domains": [["/nowhere/energy_uj", 1]]}, 0.1), "test")
    for _ in range(2):
        meter.start()
        trace = meter.stop()
        assert trace.energy_j is None and "ended early" in trace.fault and len(trace.watts) == 0
    meter.close()


@pytest.mark.parametrize(("blow", "said"), [("SIGKILL", "signal 9"), ("SIGSTOP", "did not answer for 0.5 s")])
def test_a_dead_or_hanging_sampling_process_costs_its_window_alone(powercap, monkeypatch, blow, said):
    monkeypatch.setattr(sampler, "DEADLINE_S", 0.5)
    meter = rapl.open_meter(Metering(), base=powercap)
    meter.start()
    first = meter._sampler._process
    os.kill(first.pid, getattr(signal, blow))
    spend(powercap, package0=5)
    begin = time.perf_counter()
    trace = meter.stop()
    assert trace.energy_j is None and said in trace.fault
    assert time.perf_counter() - begin < 60
    assert first.poll() == -signal.SIGKILL
    monkeypatch.setattr(sampler, "DEADLINE_S", 5)
    meter.start()
    spend(powercap, package0=42)
    trace = meter.stop()
    meter.close()
    assert trace.fault is None and trace.energy_j == pytest.approx(42)
    assert meter._sampler._process.pid != first.pid and meter._sampler._process.returncode == 0


@pytest.mark.parametrize("given_up", ["stop", "close"])
def test_a_sampling_process_that_cannot_be_ended_is_left_behind(powercap, monkeypatch, given_up):
    monkeypatch.setattr(sampler, "DEADLINE_S", 0.5)
    meter = rapl.open_meter(Metering(), base=powercap)
    meter.start()
    stuck = meter._sampler._process
    monkeypatch.setattr(stuck, "kill", lambda: None)  # as inside a driver's call
    os.kill(stuck.pid, signal.SIGSTOP)
    try:
        if given_up == "stop":
            assert "did not answer" in meter.stop().fault
        else:
            meter._sampler.close()
        monkeypatch.setattr(sampler, "DEADLINE_S", 5)
        meter.start()
        spend(powercap, package0=42)
        trace = meter.stop()
        meter.close()
        assert stuck.poll() is None and meter._sampler._process.returncode == 0
        assert trace.fault is None and trace.energy_j == pytest.approx(42)
    finally:
        os.kill(stuck.pid, signal.SIGKILL)
        stuck.wait()


PROGRAM = """
import sys, time
from quantwatt.measuring.meters import Metering, rapl
meter = rapl.open_meter(Metering(), base=sys.argv[1])
if sys.argv[2] == "in a window":
    meter.start()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("moment", ["in a window", "between windows"])
@pytest.mark.parametrize("blow", ["SIGTERM", "SIGKILL"])
def test_a_sampling_process_ends_with_the_program_that_began_it(powercap, moment, blow):
    environment = {**os.environ, "PYTHONPATH": meters.__file__.rpartition("/quantwatt/")[0]}
    command = [sys.executable, "-c", PROGRAM, powercap, moment]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout.readline() == b"ready\n"
        begun = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        program.send_signal(getattr(signal, blow))
        program.communicate(timeout=60)  # its standard error closes with the last process that holds it
    assert program.returncode == -getattr(signal, blow) and len(begun) == 1


def test_a_meter_closes_with_a_hanging_process(powercap, monkeypatch):
    monkeypatch.setattr(sampler, "DEADLINE_S", 0.2)
    meter = rapl.open_meter(Metering(), base=powercap)
    meter.start()
    os.kill(meter._sampler._process.pid, signal.SIGSTOP)
    meter.close()
    assert meter._sampler._process.poll() == -signal.SIGKILL


MACHINE = {"path": "/proc/stat", "scope": "machine", "idle_w": 1, "full_w": 2, "n_cpus": os.cpu_count()}


def test_long_windows_come_back_whole():
    fast = Sampler("estimate", MACHINE, 1e-4)
    fast.start()
    time.sleep(1)
    answer = fast.stop()
    fast.close()
    assert answer["samples"].nbytes > 1 << 16  # more than a pipe holds
    assert answer["samples"].shape[1] == 4 and (np.diff(answer["samples"][:, 0]) > 0).all()


@pytest.mark.parametrize("awake_s", [0.1, 0])  # before `stop` is asked for, or not until then
def test_ticks_that_were_slept_through_are_counted_as_missed(awake_s):
    ticking = Sampler("estimate", MACHINE, 0.01)
    ticking.start()
    os.kill(ticking._process.pid, signal.SIGSTOP)
    waking = threading.Timer(0.3, os.kill, (ticking._process.pid, signal.SIGCONT))
    waking.start()
    time.sleep(0.3 + awake_s if awake_s else 0)
    answer = ticking.stop()
    ticking.close()
    n_ticks = len(answer["samples"]) - 2 + answer["n_late"]
    # Starting and ending take ticks of a busy machine; without those slept through it would be a third.
    assert answer["n_late"] >= 25 and n_ticks == pytest.approx(answer["sampler"]["wall_s"] / 0.01, rel=0.25, abs=2)
    assert awake_s == 0 or answer["sampler"]["late_p99_ms"] > 100
    assert trace_of(source="test", **answer).n_missed == answer["n_late"]


ORDINARY = """
import os, runpy
def refuse(*arguments):
    raise PermissionError
os.setpriority = os.sched_setscheduler = refuse
runpy.run_module("quantwatt.measuring.meters.sampler", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("ordinary", [False, True])
def test_a_busy_machine_loses_few_ticks_or_the_energy(ordinary):
    ticking = Sampler("estimate", MACHINE, 0.01)
    if ordinary:  # who may not let the sampler go before others
        ticking.close()
        ticking._command[1:3] = ["-c", ORDINARY]
    spin = [sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(spin) for _ in range(len(os.sched_getaffinity(0)))]
    lost = []
    try:
        while len(lost) < 3 and min(lost, default=1) > 0.01:  # another machine may hold this one up for a while
            ticking.start()
            first = os.sched_getscheduler(ticking._process.pid) == os.SCHED_RR
            time.sleep(2)
            answer = ticking.stop()
            n_ticks = len(answer["samples"]) - 2 + answer["n_late"]
            lost.append(answer["n_late"] / n_ticks)
            covered_s = answer["samples"][-1, 0] - answer["samples"][0, 0]
            assert n_ticks == pytest.approx(covered_s / 0.01, abs=2)  # none is forgotten
            answer["samples"] = [(t, 50.0, None) for t, *_ in answer["samples"]]  # of a sensor without a counter
            trace = trace_of(source="test", **answer)
            if lost[-1] > 0.06:
                assert trace.energy_j is None and trace.fault
            elif trace.fault is None:
                assert trace.energy_j == pytest.approx(50 * covered_s)
    finally:
        ticking.close()
        for process in spinning:
            process.kill()
            process.wait()
    assert not (ordinary and first)
    if first:
        assert min(lost) <= 0.01


class FakeGpuMeter(SampledMeter):
    name, reads = "nvml", "cuda"


@pytest.fixture
def processor(powercap, monkeypatch):
    """The powercap tree, in the place of this machine's."""
    monkeypatch.setattr(rapl, "open_meter", partial(rapl.open_meter, make_sampler=DrivenSampler, base=powercap))
    return powercap


def gpu_meter():
    sampling = DrivenSampler("rapl", {"domains": []}, 0.01)
    sampling.read = lambda: (100.0, 100.0 * sampling.now_s, float("nan"))
    return FakeGpuMeter(sampling, "test")


def test_beside_a_gpu_the_processor_and_its_memory_are_read(processor):
    gpu = gpu_meter()
    beside = secondary_meters(gpu, Metering(interval_ms=10), "cuda")
    assert list(beside) == ["cpu package", "dram"]
    meter = CompositeMeter(gpu, beside)
    assert (meter.name, meter.reads, meter.estimated) == ("nvml", "cuda", False)
    meter.start()
    for _ in range(4):  # 4 s: of the processor 8 J each s, of its memory 0.5 J
        spend(processor, package0=3, package1=5, dram=0.5)
        for one in (gpu, *beside.values()):
            one._sampler.tick(1)
    trace = meter.stop()
    assert trace.energy_j == 400
    assert trace.beside == pytest.approx({"cpu package": 32, "dram": 2})
    assert meter.provenance()["beside"]["dram"]["domains"] == ["dram (intel-rapl:0:1)"]


def test_what_is_beside_is_counted_between_the_first_meters_edges(processor):
    gpu = gpu_meter()
    beside = secondary_meters(gpu, Metering(), None)
    meter = CompositeMeter(gpu, beside)
    gpu._sampler.now_s += 1  # begins a second later than the others, and stops a second before
    meter.start()
    for _ in range(4):
        spend(processor, package0=8, dram=1)
        for one in beside.values():
            one._sampler.tick(1)
    gpu._sampler.tick(2)
    assert meter.stop().beside == pytest.approx({"cpu package": 16, "dram": 2})


def test_a_companion_or_a_first_meter_without_energy_leaves_none(processor):
    gpu = gpu_meter()
    beside = secondary_meters(gpu, Metering(), "cuda")
    meter = CompositeMeter(gpu, beside)
    meter.start()
    spend(processor, package0=8)
    for one in (gpu, *beside.values()):
        one._sampler.tick(1)
    assert meter.stop().beside == {"cpu package": pytest.approx(8), "dram": None}  # whose counter stood still
    gpu.stop = open_meter("none").stop
    meter.start()
    assert meter.stop().beside == {"cpu package": None, "dram": None}


def test_without_a_gpu_or_readable_counters_nothing_is_beside(processor):
    gpu = gpu_meter()
    assert secondary_meters(gpu, Metering(), "cpu") == {}
    assert secondary_meters(open_meter("none"), Metering(), "cuda") == {}
    shutil.rmtree(processor / "intel-rapl:0:1")
    assert list(secondary_meters(gpu, Metering(), "cuda")) == ["cpu package"]
    for name in ("intel-rapl:0", "intel-rapl:1"):
        shutil.rmtree(processor / name)
    assert secondary_meters(gpu, Metering(), "cuda") == {}


def test_a_failed_reading_is_missed_and_never_zero():
    samples = [(0.0, 50.0, 0.0), (1.0, None, 50.0), (2.0, 0.0, 100.0), (3.0, 50.0, 150.0)]
    trace = trace_of(samples, 2, "test")
    assert (trace.n_missed, trace.n_zero) == (3, 1)
    assert np.isnan(trace.watts[1]) and trace.energy_j == 150
    assert trace_of([(0.0, None, None), (1.0, None, None)], 0, "test").energy_j is None


def test_a_trace_keeps_the_sensors_time_and_its_samplers_cost():
    cost = {"cpu_s": 0.1, "wall_s": 1.0, "late_p50_ms": 0.1, "late_p99_ms": 0.2}
    trace = trace_of([(0.0, 5.0, 0.0, 1000.0), (1.0, 5.0, 5.0, 1000.9)], 0, "test", sampler=cost)
    assert trace.sensor_s.tolist() == [1000.0, 1000.9] and trace.sampler == cost
    assert np.isnan(trace_of([(0.0, 5.0, 0.0), (1.0, 5.0, 5.0)], 0, "test").sensor_s).all()
    assert trace_of([(0.0, 5.0, 0.0, None), (1.0, 5.0, 5.0, None)], 0, "test", fault="gone").energy_j is None


@pytest.mark.parametrize(
    ("counter", "fault"),
    [
        ([0, 10, 5, 20], "was reset"),
        ([7, 7, 7, 7], "did not move"),
        ([None, 10, 15, 20], "could not be read"),
        ([0, 10, 15, None], "could not be read"),
    ],
)
def test_a_counter_that_cannot_be_trusted_gives_no_energy(counter, fault):
    trace = trace_of([(float(i), 5.0, joules) for i, joules in enumerate(counter)], 0, "test")
    assert trace.energy_j is None and fault in trace.fault


STEPS = np.arange(1001) * 0.01  # s, readings of 10 s


def counted(joules):
    """A trace of a counter alone."""
    return trace_of([(t, None, j) for t, j in zip(STEPS, joules, strict=True)], 0, "test")


def powered(watts, n_late=0):
    """A trace of power alone."""
    return trace_of([(t, w, None) for t, w in zip(STEPS, watts, strict=True)], n_late, "test")


def test_a_counter_alone_that_stands_still_within_gives_no_energy():
    joules = 100 * STEPS
    short = np.where((STEPS > 4) & (STEPS < 4.95), joules[400], joules)
    assert counted(short).energy_j == pytest.approx(1000)
    for since, until in ((4, 6), (0, 2), (8, 11)):
        still = np.interp(STEPS, [0, since, until, 11], [0, 100 * since, 100 * since, 100 * (11 - until + since)])
        trace = counted(still)
        assert trace.energy_j is None and "stood still for 2.0 s" in trace.fault
    beside = trace_of([(t, 100.0, j) for t, j in zip(STEPS, still, strict=True)], 0, "test")
    assert beside.fault is None  # the integral of the power tells on it


def test_an_idle_processors_estimate_is_energy(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 0 9 9 0 0 0 0 0\n")  # no CPU time passes
    read = estimate.reader(str(stat), "machine", idle_w=10, full_w=70, n_cpus=2)
    samples = []
    for t in STEPS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(estimate.time, "perf_counter", lambda t=t: t)
            samples.append((t, *read()))
    trace = trace_of(samples, 0, "test")
    assert trace.fault is None and trace.energy_j == pytest.approx(100)


def test_a_step_of_a_counter_that_no_machine_can_draw_gives_no_energy():
    boards = np.floor(STEPS * 10 + 1e-6) / 10 * 8 * 1000  # eight of 1 kW, published every 100 ms, read every 10 ms
    assert counted(boards).energy_j == pytest.approx(80_000)
    leap = counted(np.where(STEPS < 5, 100 * STEPS, 100 * STEPS + 212_000))
    assert leap.energy_j is None and "rose by 212001 J in 0.01 s" in leap.fault


def test_power_of_nothing_but_zero_is_no_energy():
    trace = trace_of([(0.0, 0.0, None), (1.0, 0.0, None)], 0, "test")
    assert trace.energy_j is None and trace.n_zero == 2


def test_power_without_a_counter_must_be_read_throughout():
    hundred, index = np.full(1001, 100.0), np.arange(1001)
    assert powered(hundred).energy_j == pytest.approx(1000)
    assert powered(np.where(index % 25 == 0, np.nan, hundred), 5).energy_j == pytest.approx(1000)  # 4.5 % missed
    for broken, n_late, said in (
        (np.where(index % 2 == 0, 0.0, hundred), 0, "501 of 1001 power readings were 0 W"),
        (np.where(index == 500, 0.0, hundred), 0, "1 of 1001 power readings were 0 W"),
        (np.where(index % 10 != 0, np.nan, hundred), 0, "90% of the power readings were missed"),
        (np.where(index % 25 == 0, np.nan, hundred), 15, "6% of the power readings were missed"),
        (hundred, 1_000_000, "100% of the power readings were missed"),
    ):
        trace = powered(broken, n_late)
        assert trace.energy_j is None and said in trace.fault
    few = trace_of([(0.0, 100.0, None), (10.0, 100.0, None)], 998, "test")
    assert few.energy_j is None and "missed" in few.fault


@pytest.mark.parametrize("since", [0.0, 40.0, 99.42])
def test_a_gap_between_good_power_readings_is_half_a_second_at_most(since):
    times = np.arange(10_001) * 0.01
    for gap_s, said in ((0.4, None), (0.58, "no power was read for 0.6 s")):  # far fewer than one reading in twenty
        gone = (times > since) & (times < since + gap_s)
        gone[0] = gone[1]
        samples = [(t, None if none else 100.0, None) for t, none in zip(times, gone, strict=True)]
        trace = trace_of(samples, 0, "test")
        assert (trace.energy_j is None) == (said is not None)
        assert said is None or said in trace.fault


def test_equal_neighbours_count():
    assert hold_integral_j([0, 1, 2, 3], [70, 70, 70, 70], 0, 4) == 280  # deduplicated, this reads 0 J somewhere


watts = st.floats(0, 1000)
steps = st.floats(1e-3, 10)


@settings(max_examples=60, deadline=None)
@given(power=watts, gaps=st.lists(steps, min_size=1, max_size=20), ends=st.tuples(steps, steps))
def test_constant_power_is_power_times_time(power, gaps, ends):
    times = np.cumsum(gaps)
    start, stop = times[0] - ends[0], times[-1] + ends[1]
    assert hold_integral_j(times, np.full(len(times), power), start, stop) == pytest.approx(power * (stop - start))


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(st.tuples(steps, st.one_of(watts, st.just(float("nan")))), min_size=1, max_size=20),
    cuts=st.tuples(st.floats(-5, 100), st.floats(-5, 100), st.floats(-5, 100)),
)
def test_windows_add_up(samples, cuts):
    times, power = np.cumsum([gap for gap, _ in samples]), np.array([value for _, value in samples])
    a, b, c = sorted(cuts)
    whole = hold_integral_j(times, power, a, c)
    if np.isnan(power).all():
        assert whole is None
    else:
        parts = hold_integral_j(times, power, a, b) + hold_integral_j(times, power, b, c)
        assert parts == pytest.approx(whole, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(power=st.lists(st.floats(1, 500), min_size=2, max_size=20))
def test_the_slope_of_a_counter_integrates_to_the_counter(power):
    counter = np.concatenate([[0], np.cumsum(power)])
    trace = trace_of([(float(i), None, joules) for i, joules in enumerate(counter)], 0, "test")
    assert hold_integral_j(trace.timestamps_s, trace.watts, 0, len(power)) == pytest.approx(trace.energy_j)
