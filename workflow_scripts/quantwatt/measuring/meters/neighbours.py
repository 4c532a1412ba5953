"""What other programs did meanwhile: a counter of a whole package or board holds their energy, too.

Of the processor: the busy ticks of all CPUs (/proc/stat, the host's also in a container) less those of this process and
of those that it started. Of a GPU: the compute processes that the driver lists when the work begins and when it ends.
Where that is not told, it is unknown, and nothing is concluded from it.
"""

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantwatt.measuring.cpus import machine_ticks, process_ticks
from quantwatt.measuring.meters import Meter

PROC = Path("/proc")
SHARE = 0.05  # of the CPU time: from here on a package's energy is not the work's; so much lie two sensors apart
LEAST_S = 0.2  # of others' CPU time: below, it is ticks of 10 ms and the kernel's own work


@dataclass(frozen=True)
class Others:
    """What other programs did meanwhile; None where it is unknown.

    cpu_share: the part of all CPU time that they used, 0 to 1.
    gpu_processes: how many of them computed on the board.
    """

    cpu_share: float | None
    gpu_processes: int | None
    cpu_s: float | None = None

    def fault(self, reads: str | None) -> str | None:
        """Why the energy of what a meter reads ("cpu" or "cuda") is not the work's, or None."""
        if reads == "cpu" and self.cpu_share is not None and self.cpu_share > SHARE and (self.cpu_s or 0) > LEAST_S:
            return (
                f"other programs used {self.cpu_share:.0%} of the CPU time meanwhile, and the counter holds their "
                "energy; for a figure give the job all cores (config.yaml: threads) and leave the machine to it"
            )
        if reads == "cuda" and self.gpu_processes:
            programs = "another program" if self.gpu_processes == 1 else f"{self.gpu_processes} other programs"
            return (
                f"{programs} computed on the GPU meanwhile, and the counter holds their energy; for a figure leave it "
                "to the job"
            )
        return None

    def record(self) -> dict[str, Any]:
        return {"cpu_share": self.cpu_share, "gpu_processes": self.gpu_processes}


class Watch:
    """What others do between `start` and `stop`."""

    def __init__(self, meter: Meter):
        """`meter` tells the processes on its GPU, by `processes()`, where it counts those of all programs."""
        self._list = meter.processes if meter.whole else lambda: None
        self._proc = PROC

    def start(self) -> None:
        self._before, self._beside = self._ticks(), self._others_on_gpu()

    def stop(self) -> Others:
        """Others, since `start`."""
        after, beside = self._ticks(), [n for n in (self._beside, self._others_on_gpu()) if n is not None]
        processes = max(beside, default=None)
        if self._before is None or after is None:
            return Others(None, processes)
        busy, own = (max(0, now - then) for now, then in zip(after, self._before, strict=True))
        cpu_s = max(0, busy - own) / os.sysconf("SC_CLK_TCK")
        return Others(max(0, busy - own) / busy if busy else 0.0, processes, cpu_s)

    def _ticks(self):
        """(busy ticks of the machine, of this process with all that it started), or None where they cannot be read."""
        try:
            machine = machine_ticks((self._proc / "stat").read_text())
            return machine, sum(ticks for _, ticks in self._family().values())
        except (OSError, ValueError, KeyError):
            return None

    def _family(self):
        """{pid: (parent, ticks)} of this process and of its descendants that run."""
        running = {}
        for folder in self._proc.iterdir():
            if folder.name.isdecimal():
                with contextlib.suppress(OSError, IndexError):  # it has ended
                    stat = (folder / "stat").read_text()
                    running[int(folder.name)] = (int(stat.rpartition(")")[2].split()[1]), process_ticks(stat))
        family, found = {}, {os.getpid()}
        while found:
            family |= {pid: running[pid] for pid in found}
            found = {pid for pid, (parent, _) in running.items() if parent in found} - family.keys()
        return family

    def _others_on_gpu(self):
        """How many other processes compute on the meter's board now, or None.

        In a container the driver may tell the host's numbers of processes: then one of them is this one, where it
        computes.
        """
        listed = self._list()
        if listed is None:
            return None
        with contextlib.suppress(OSError, KeyError):
            own = len(set(listed) & self._family().keys())
            return len(set(listed)) - (own or min(len(set(listed)), _computes()))
        return None


def _computes():
    """1 where torch computes on a GPU in this process."""
    torch = sys.modules.get("torch")
    return int(torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized())
