"""Energy of a job while other jobs computed: empty with a reason, or known to be this job's alone."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from quantwatt.measuring import meters
from quantwatt.measuring.meters import neighbours
from quantwatt.measuring.meters.trace import trace_of

HZ = os.sysconf("SC_CLK_TCK")


class Machine:
    """/proc of a machine whose busy time is added by `spend`."""

    def __init__(self, folder):
        self.folder, self.busy, self.processes = folder, 1000 * HZ, {}
        self.spend(os.getpid(), 0)

    def spend(self, pid, seconds, parent=1):
        """CPU time of a process; None: of one that is not in this container."""
        self.busy += round(seconds * HZ)
        (self.folder / "stat").write_text(f"cpu  {self.busy} 0 0 99 9 0 0 0 0 0\ncpu0 1 0 0 9 9 0 0 0 0 0\n")
        if pid is None:
            return
        ticks, parent = self.processes.get(pid, (0, parent))
        self.processes[pid] = ticks + round(seconds * HZ), parent
        (self.folder / str(pid)).mkdir(exist_ok=True)
        ticks = self.processes[pid][0]
        line = f"{pid} (a (b) c) S {parent} 7 7 0 -1 4194304 5 6 7 8 {ticks} 0 0 0 20 0 3 0 99 1 2\n"
        (self.folder / str(pid) / "stat").write_text(line)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "PROC", tmp_path)
    return Machine(tmp_path)


class Counter:
    """A meter whose counter rises by 100 J."""

    name, estimated, whole = "rapl", False, True

    def __init__(self, reads="cpu", processes=None, whole=True):
        self.reads, self.listed, self.whole = reads, processes, whole

    def start(self):
        pass

    def stop(self):
        return trace_of([(0.0, np.nan, 0.0), (1.0, np.nan, 100.0)], 0, "test")

    def processes(self):
        return self.listed

    def close(self):
        pass


def metered(monkeypatch, meter, work=lambda: None):
    monkeypatch.setattr(meters, "open_meter", lambda *given, **named: meter)
    _, cost, trace = meters.metered(work, meters.Metering(meter.name), meter.reads)
    assert trace.energy_j == cost["energy_j"] and cost["reason"] == trace.fault
    assert (trace.energy_between(0, 1) is None) == (cost["energy_j"] is None)  # of a layer's part, too
    return cost


@pytest.mark.parametrize(
    ("own", "others", "share"),
    [(10, 0, 0), (10, 0.5, 0.5 / 10.5), (10, 1, 1 / 11), (10, 30, 0.75), (0, 3, 1), (0, 0, 0), (0, 0.1, 1)],
)
def test_a_package_beside_others_has_no_energy_of_ones_own(machine, monkeypatch, own, others, share):
    """mlco2/codecarbon#261: experiments at once on one server each read the whole server's."""

    def work():
        machine.spend(os.getpid(), own)
        machine.spend(4242, others / 2)
        machine.spend(None, others / 2)  # of another container, which its host's /proc/stat counts

    cost = metered(monkeypatch, Counter(), work)
    assert cost["others"] == {"cpu_share": pytest.approx(share), "gpu_processes": None}
    if share > neighbours.SHARE and others > neighbours.LEAST_S:
        assert cost["energy_j"] is None
        assert cost["reason"].startswith(f"other programs used {share:.0%} of the CPU time meanwhile")
        assert "(config.yaml: threads)" in cost["reason"]
    else:
        assert cost["energy_j"] == 100 and cost["reason"] is None


def test_what_the_job_itself_started_is_no_other_program(machine, monkeypatch):
    def work():
        machine.spend(7001, 40, parent=os.getpid())
        machine.spend(7002, 40, parent=7001)
        machine.spend(os.getpid(), 1)

    cost = metered(monkeypatch, Counter(), work)
    assert cost["energy_j"] == 100 and cost["others"]["cpu_share"] == 0


def test_the_estimate_of_a_process_is_its_own_beside_others(machine, monkeypatch):
    cost = metered(monkeypatch, Counter(whole=False), lambda: machine.spend(None, 9))
    assert cost["energy_j"] == 100 and cost["others"]["cpu_share"] == 1


def test_where_busy_time_is_not_told_nothing_is_concluded(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "PROC", tmp_path)
    cost = metered(monkeypatch, Counter())
    assert cost["energy_j"] == 100 and cost["others"] == {"cpu_share": None, "gpu_processes": None}


@pytest.mark.parametrize(
    ("listed", "computes", "others"),
    [
        (None, True, None),  # WSL 2 does not tell (NVIDIA/cudf#9955)
        ([os.getpid()], True, 0),
        ([os.getpid(), 31, 32], True, 2),  # mlco2/codecarbon#936: several programs on one GPU
        ([31], False, 1),
        ([90001], True, 0),  # the host's number of this process (NVIDIA/nvidia-docker#1483)
        ([90001, 90002], True, 1),
        ([31, 31], False, 1),  # on two boards
    ],
)
def test_a_gpu_that_others_compute_on_has_no_energy_of_ones_own(machine, monkeypatch, listed, computes, others):
    told = SimpleNamespace(is_available=lambda: True, is_initialized=lambda: computes)
    monkeypatch.setitem(neighbours.sys.modules, "torch", SimpleNamespace(cuda=told))
    cost = metered(monkeypatch, Counter("cuda", listed), lambda: machine.spend(None, 9))  # the CPUs are not its matter
    assert cost["others"]["gpu_processes"] == others
    assert cost["energy_j"] == (None if others else 100)
    if others:
        number = "another program" if others == 1 else "2 other programs"
        assert cost["reason"].startswith(f"{number} computed on the GPU meanwhile")
