"""Watch other programs during a measurement: a counter of a whole package or board includes their energy.

CPU: the busy ticks of all CPUs (/proc/stat, which shows the host's CPUs also in a container), minus the ticks of this
process and its descendants. GPU: the compute processes that the driver lists at the start and at the end. Where a value
cannot be read it is unknown, and the energy is kept.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantwatt.measuring.cpus import machine_ticks, process_ticks
from quantwatt.measuring.meters import Meter

PROC = Path("/proc")
SHARE = 0.05  # largest share of others in the CPU time; the energy of two sensors differs by about as much
TICKS = 2  # of CPU time, which is counted in whole ticks: others' time is known no better
STATE = ("sm_clock_mhz", "temperature_c", "throttle_reasons")  # of a GPU, kept for each block
LEAST_S = 0.2  # others' CPU time that is ignored: the 10 ms resolution of ticks, and the kernel's work


@dataclass(frozen=True)
class Others:
    """Activity of other programs during the measurement; None where it is unknown.

    cpu_share: their share of all busy CPU time, 0 to 1.
    gpu_processes: number of other processes that computed on the board.
    cpu_s: their CPU time in seconds.
    """

    cpu_share: float | None
    gpu_processes: int | None
    cpu_s: float | None = None

    def fault(self, reads: str | None) -> str | None:
        """Return why the energy that a meter read from a device ("cpu" or "cuda") is not only the work's, or None."""
        if reads == "cpu" and self.cpu_share is not None and self.cpu_share > SHARE and (self.cpu_s or 0) > LEAST_S:
            return (
                f"other programs used {self.cpu_share:.0%} of the CPU time meanwhile, and the counter includes their "
                "energy; give the job all cores (config.yaml: threads) and run nothing else on the machine"
            )
        if reads == "cuda" and self.gpu_processes:
            programs = "another program" if self.gpu_processes == 1 else f"{self.gpu_processes} other programs"
            return (
                f"{programs} computed on the GPU meanwhile, and the counter includes their energy; run nothing else "
                "on the GPU"
            )
        return None

    def record(self) -> dict[str, Any]:
        return {"cpu_share": self.cpu_share, "gpu_processes": self.gpu_processes}


class Around:
    """Sees in each block how much of the CPUs others took: cheap enough to be read before and after every block.

    The CPU time of this process's children, such as the sampling process's, counts as that of others.
    """

    def __init__(self, n_cpus: int, state: Callable[[], Mapping[str, Any]] = dict):
        """`n_cpus`: CPUs of the machine; `state`: what the meter says of the device, of which STATE is kept."""
        self._n_cpus, self._state, self._proc = n_cpus, state, PROC

    def start(self) -> None:
        self._before = self._read()

    def stop(self, seconds: float) -> dict[str, Any]:
        """Return {"cpu_s", "others_s", "steal_s", "running", "disturbed"} since `start`, and STATE at the end.

        "cpu_s" is this process's CPU time, "others_s" that of all other programs, "steal_s" what the hypervisor gave to
        other machines, "running" the processes that were ready to run at the end. "disturbed" says whether others took
        more than SHARE of the machine; None where /proc/stat cannot be read.
        """
        before, after = self._before, self._read()
        state = self._state()
        around = {"cpu_s": after["cpu_s"] - before["cpu_s"], "others_s": None, "steal_s": None, "running": None,
                  "disturbed": None, **{name: state[name] for name in STATE if name in state}}  # fmt: skip
        if "busy_s" in before and "busy_s" in after:
            others_s = max(0.0, after["busy_s"] - before["busy_s"] - around["cpu_s"])
            steal_s = after["steal_s"] - before["steal_s"]
            taken_s = others_s + steal_s - TICKS / os.sysconf("SC_CLK_TCK")
            around |= {"others_s": others_s, "steal_s": steal_s, "running": after["running"],
                       "disturbed": taken_s > SHARE * seconds * self._n_cpus}  # fmt: skip
        return around

    def _read(self):
        found = {"cpu_s": time.process_time()}
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = (self._proc / "stat").read_text()
            ticks_per_s = os.sysconf("SC_CLK_TCK")
            found["running"] = int(stat.partition("procs_running ")[2].split(maxsplit=1)[0])
            found["steal_s"] = int(stat.split(maxsplit=9)[8]) / ticks_per_s
            found["busy_s"] = machine_ticks(stat) / ticks_per_s
        return found


class Watch:
    """Observes the activity of other programs between `start` and `stop`."""

    def __init__(self, meter: Meter):
        """Watch the CPUs, and the GPU processes that `meter.processes()` lists if the meter counts a whole board."""
        self._list = meter.processes if meter.whole else lambda: None
        self._proc = PROC

    def start(self) -> None:
        self._before, self._beside = self._ticks(), self._others_on_gpu()

    def stop(self) -> Others:
        """Return the activity of others since `start`."""
        after, counts = self._ticks(), [n for n in (self._beside, self._others_on_gpu()) if n is not None]
        processes = max(counts, default=None)
        if self._before is None or after is None:
            return Others(None, processes)
        busy, family = (max(0, now - then) for now, then in zip(after, self._before, strict=True))
        cpu_s = max(0, busy - family) / os.sysconf("SC_CLK_TCK")
        return Others(max(0, busy - family) / busy if busy else 0.0, processes, cpu_s)

    def _ticks(self):
        """(busy ticks of the machine, of this process and its descendants), or None where they cannot be read."""
        try:
            machine = machine_ticks((self._proc / "stat").read_text())
            return machine, sum(ticks for _, ticks in self._family().values())
        except (OSError, ValueError, KeyError):
            return None

    def _family(self):
        """{pid: (parent, ticks)} of this process and its running descendants."""
        running = {}
        for folder in self._proc.iterdir():
            if folder.name.isdecimal():
                with contextlib.suppress(OSError, IndexError):  # the process has ended
                    stat = (folder / "stat").read_text()
                    running[int(folder.name)] = (int(stat.rpartition(")")[2].split()[1]), process_ticks(stat))
        family, generation = {}, {os.getpid()}
        while generation:
            family |= {pid: running[pid] for pid in generation}
            generation = {pid for pid, (parent, _) in running.items() if parent in generation} - family.keys()
        return family

    def _others_on_gpu(self):
        """Return how many other processes compute on the meter's board now, or None.

        In a container the driver may list process ids of the host. This process is then assumed to be one of them if it
        computes on a GPU.
        """
        listed = self._list()
        if listed is None:
            return None
        with contextlib.suppress(OSError, KeyError):
            in_family = len(set(listed) & self._family().keys())
            return len(set(listed)) - (in_family or min(len(set(listed)), _computes()))
        return None


def _computes():
    """Return 1 if torch computes on a GPU in this process, else 0."""
    torch = sys.modules.get("torch")
    return int(torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized())
