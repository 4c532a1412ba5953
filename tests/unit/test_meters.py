"""The CPU meters, the trace arithmetic and the registry; no hardware is read except /proc."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantwatt import meters
from quantwatt.meters import MeterUnavailable, estimate, open_meter, rapl
from quantwatt.meters.sampler import Sampler, Sampling
from quantwatt.meters.trace import hold_integral_j, trace_of

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
        return self.sampling.samples, 0

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
    meter = rapl.open_meter({}, DrivenSampler, powercap)
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


def test_rapl_counts_every_wrap_of_the_counter(powercap):
    meter = rapl.open_meter({}, DrivenSampler, powercap)
    meter.start()
    for _ in range(3):
        spend(powercap, package0=RANGE_UJ / 1e6 * 0.75)
        meter._sampler.tick(1)
    assert meter.stop().energy_j == pytest.approx(3 * 0.75 * RANGE_UJ / 1e6)


def test_rapl_counter_that_stands_still_has_no_energy(powercap):
    meter = rapl.open_meter({}, DrivenSampler, powercap)
    meter.start()
    meter._sampler.tick(5)
    trace = meter.stop()
    assert trace.energy_j is None and trace.fault == "the energy counter did not move"


def test_rapl_names_the_unreadable_file_and_the_command(powercap, monkeypatch):
    denied = powercap / "intel-rapl:0" / "energy_uj"
    read_text = type(denied).read_text

    def deny(path, *args):
        if path == denied:
            raise PermissionError(13, "Permission denied")
        return read_text(path, *args)

    monkeypatch.setattr(type(denied), "read_text", deny)  # root may read any file
    with pytest.raises(MeterUnavailable, match=f"sudo chmod a\\+r {denied}"):
        rapl.open_meter({}, DrivenSampler, powercap)


def test_rapl_without_domains_says_what_to_choose(tmp_path):
    with pytest.raises(MeterUnavailable, match="no RAPL energy counter.*estimate or none"):
        rapl.open_meter({}, DrivenSampler, tmp_path)


def test_rapl_through_its_sampling_process(powercap):
    meter = rapl.open_meter({}, base=powercap)
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
        open_meter("estimate", wattages)


def test_estimate_reads_the_busy_fields_of_proc():
    machine = "cpu  100 20 30 4000 500 6 7 80 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert estimate.machine_ticks(machine) == 100 + 20 + 30 + 6 + 7  # neither idle, iowait nor stolen
    process = "7 (a (b) c) S 1 7 7 0 -1 4194304 5 6 7 8 1000 200 30 4 20 0 3 0 99 1 2\n"
    assert estimate.process_ticks(process) == 1234


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
    meter = open_meter("estimate", {"idle_w": 1.0, "full_w": 1.0 + 10 * os.cpu_count()}, "cpu")
    assert meter.estimated
    meter.start()
    busy = time.process_time()
    while time.process_time() - busy < 0.5:
        pass
    trace = meter.stop()
    meter.close()
    seconds = trace.timestamps_s[-1] - trace.timestamps_s[0]
    assert trace.energy_j == pytest.approx(seconds * 1 + 0.5 * 10, abs=0.7)  # 10 W a CPU, ticks of 10 ms
    assert "CPU time of the process" in trace.source


def test_no_meter_has_a_reason_and_no_energy():
    meter = open_meter("none")
    meter.start()
    trace = meter.stop()
    assert trace.energy_j is None and "meter: none" in trace.fault and not meter.estimated


def test_an_unknown_meter_is_refused_with_the_known_ones():
    with pytest.raises(MeterUnavailable, match="nvml, rapl, estimate, none"):
        open_meter("wattmeter")


def test_a_meter_of_another_device_is_refused():
    with pytest.raises(MeterUnavailable, match="reads the cpu, not the cuda"):
        open_meter("estimate", {"idle_w": 10, "full_w": 65}, "cuda")


def test_opening_a_meter_imports_no_other_meter_and_no_torch():
    code = "import sys; from quantwatt.meters import open_meter; open_meter('none'); print(*sys.modules)"
    scripts = meters.__file__.rpartition("/quantwatt/")[0]
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": scripts},
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.split()
    assert "quantwatt.meters.none" in loaded
    assert not {"torch", "pynvml", "quantwatt.meters.nvml", "quantwatt.meters.rapl"} & set(loaded)


def test_a_sampling_process_that_fails_is_reported():
    sampler = Sampler("rapl", {"domains": [["/nowhere/energy_uj", 1]]}, 0.1)
    with pytest.raises(MeterUnavailable, match="ended early"):
        sampler.start()
    sampler.close()


def test_a_failed_reading_is_missed_and_never_zero():
    samples = [(0.0, 50.0, 0.0), (1.0, None, 50.0), (2.0, 0.0, 100.0), (3.0, 50.0, 150.0)]
    trace = trace_of(samples, 2, "test")
    assert (trace.n_missed, trace.n_zero) == (3, 1)
    assert np.isnan(trace.watts[1]) and trace.energy_j == 150
    assert trace_of([(0.0, None, None), (1.0, None, None)], 0, "test").energy_j is None


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


def test_power_of_nothing_but_zero_is_no_energy():
    trace = trace_of([(0.0, 0.0, None), (1.0, 0.0, None)], 0, "test")
    assert trace.energy_j is None and trace.n_zero == 2


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
