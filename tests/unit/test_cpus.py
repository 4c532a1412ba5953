"""CPUs of a machine and of a container, read from file trees like the kernel's, and their use by the estimate meter."""

import os

import pytest

from quantwatt.measuring import cpus
from quantwatt.measuring.meters import Metering, estimate


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A function that writes /proc and /sys/fs/cgroup of a machine of 64 CPUs; returns the two folders."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"

    def write(cgroup="", files=None, online=64):
        (proc / "self").mkdir(parents=True, exist_ok=True)
        lines = [f"cpu{n if n >= 0 else ' '} 100 0 0 900 0 0 0 0 0 0" for n in range(-1, online)]
        (proc / "stat").write_text("\n".join([*lines, "intr 7 0 0", "ctxt 5"]) + "\n")
        (proc / "self" / "cgroup").write_text(cgroup)
        for name, text in (files or {}).items():
            (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
            (cgroups / name).write_text(text + "\n")
        return proc, cgroups

    return write


def v1(folder, quota):
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("cgroup", "files", "usable", "said"),
    [
        ("0::/\n", {}, 64, None),
        ("0::/\n", {"cpu.max": "max 100000"}, 64, None),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5, "cgroup/cpu.max"),  # a container: docker run --cpus 1.5
        # Outside of one the group is a folder below (joblib/loky#634), and any above it may hold the quota.
        ("0::/user.slice/job\n", {"user.slice/job/cpu.max": "max 100000"}, 64, None),
        ("0::/user.slice/job\n", {"user.slice/job/cpu.max": "400000 100000"}, 4, "job/cpu.max"),
        ("0::/user.slice/job\n", {"user.slice/job/cpu.max": "max 100000", "user.slice/cpu.max": "300000 100000"}, 3,
         "user.slice/cpu.max"),
        ("4:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n", v1("cpu,cpuacct", -1), 64, None),
        ("4:cpu,cpuacct:/\n", v1("cpu,cpuacct", 200000), 2, "cpu.cfs_quota_us"),
        # A container of version 1 reads the host's path, which is not there.
        ("3:memory:/docker/1f\n2:cpu:/docker/1f\n", v1("cpu", 50000), 0.5, "cpu.cfs_quota_us"),
        ("0::/\n", {"cpu.max": "9900000 100000"}, 64, None),  # more than there are
        ("not a line of it\n", {"cpu.max": "nonsense"}, 64, None),
    ],
)  # fmt: skip
def test_a_quota_limits_the_process_and_not_the_machine(tree, cgroup, files, usable, said):
    """mlco2/codecarbon#523: a container's process saw 128 CPUs."""
    found = cpus.count(*tree(cgroup, files))
    assert (found.machine, found.usable, found.source) == (64, usable, "/proc/stat")
    assert (found.limit is None) == (said is None) and (said or "") in (found.limit or "")


def test_an_affinity_limits_the_process_and_not_the_machine(tree, monkeypatch):
    """A cpuset shows in it, too (python/cpython#149452)."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4, 5})
    monkeypatch.setattr(os, "cpu_count", lambda: 3)  # some C libraries tell the affinity here
    assert cpus.count(*tree()) == cpus.Cpus(64, 3, "an affinity for 3 CPUs", "/proc/stat")
    assert cpus.count(*tree("0::/\n", {"cpu.max": "200000 100000"})).usable == 2
    assert cpus.count(*tree("0::/\n", {"cpu.max": "800000 100000"})).usable == 3


def test_without_proc_there_is_pythons_number(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpus.count(tmp_path, tmp_path) == cpus.Cpus(10, 10, None, "os.cpu_count")


class Opened:
    def __init__(self, module, arguments, interval_s):
        self.read, self.interval_s = estimate.reader(**arguments), interval_s


def watts(meter, stat, monkeypatch, busy_cpus, before):
    """Of 10 s with so many CPUs busy; `before` and after are the text of the file that the meter reads."""
    now, joules, hz = [0.0], [], os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(estimate.time, "clock_gettime", lambda clock: cpus.process_ticks(stat.read_text()) / hz)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    for now[0] in (0.0, 10.0):
        stat.write_text(before(round(busy_cpus * now[0] * hz)))
        joules.append(meter._sampler.read()[1])
    return (joules[1] - joules[0]) / 10


def of_process(ticks):
    return f"7 (python) S 1 7 7 0 -1 4194304 5 6 7 8 {ticks} 0 0 0 20 0 3 0 99 1 2\n"


@pytest.mark.parametrize(
    ("files", "busy_cpus", "expected"),
    [
        ({}, 0, 64.0),  # all of it, and nothing to do
        ({}, 32, 64 + 0.5 * 256),
        ({"cpu.max": "200000 100000"}, 2, 2 / 64 * 320),  # its part of the machine, all busy
        ({"cpu.max": "200000 100000"}, 0, 2 / 64 * 64),
    ],
)
def test_the_estimate_of_a_container_is_of_its_part_of_the_machine(tree, monkeypatch, files, busy_cpus, expected):
    proc, cgroups = tree("0::/\n", files)
    (proc / str(os.getpid())).mkdir()
    stat = proc / str(os.getpid()) / "stat"
    stat.write_text(of_process(0))
    meter = estimate.open_meter(Metering(idle_w=64, full_w=320), None, Opened, proc, cgroups)
    assert watts(meter, stat, monkeypatch, busy_cpus, of_process) == pytest.approx(expected)
    told = meter.provenance()
    assert (told["n_cpus"], told["n_cpus_source"]) == (64, "/proc/stat") and not meter.whole
    assert told["usable_cpus"] == (2 if files else 64) and bool(told["cpu_limit"]) == bool(files)


def test_the_machines_estimate_knows_no_container(tree):
    settings = Metering(idle_w=64, full_w=320, scope="machine")
    meter = estimate.open_meter(settings, None, Opened, *tree("0::/\n", {"cpu.max": "200000 100000"}))
    assert meter.provenance()["idle_share"] == 1 and meter.whole
