"""How many CPUs the machine has, how many of them this process may use, and the busy time that Linux counts of both.

What a process may use follows from its affinity and its cgroup's quota.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cpus:
    """How many CPUs there are.

    machine: CPUs that are online, by what `source` says.
    usable: of them for this process; a part of one counts as such.
    limit: what allows no more, or None.
    """

    machine: int
    usable: float
    limit: str | None
    source: str


def count(proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> Cpus:
    """The CPUs of this machine and of this process.

    The machine's are the lines of /proc/stat, over which its busy ticks are counted: in a container those of the host,
    whatever the container may use. Cpusets show in the affinity.

    Args:
        proc, cgroups: where the kernel's trees are, for tests.
    """
    machine, source = _machine(proc)
    limits = {f"{quota:g} CPUs by {file}": quota for quota, file in _quotas(proc, Path(cgroups))}
    with contextlib.suppress(AttributeError):  # Linux alone has it
        allowed = len(os.sched_getaffinity(0))
        limits = {f"an affinity for {allowed} CPUs": allowed, **limits}
    limit = min(limits, key=lambda name: limits[name], default=None)
    if limit is None or limits[limit] >= machine:
        return Cpus(machine, machine, None, source)
    return Cpus(machine, limits[limit], limit, source)


def _machine(proc):
    with contextlib.suppress(OSError):
        lines = Path(proc, "stat").read_text().splitlines()
        number = sum(line.startswith("cpu") and line[3:4].isdigit() for line in lines)
        if number:
            return number, "/proc/stat"
    return os.cpu_count() or 1, "os.cpu_count"


def _quotas(proc, cgroups):
    """[(CPUs, file)] of the quotas of this process's cgroups and of all above them, of versions 2 and 1."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path(proc, "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                found += _along(cgroups, path, _of_version_2)
            elif "cpu" in controllers.split(","):
                for name in (controllers, "cpu"):
                    found += _along(cgroups / name, path, _of_version_1)
    return found


def _along(top, path, read):
    """In a container without a namespace of its own the path is the host's, and only `top` is there."""
    inner = top / path.lstrip("/")
    for folder in (inner, *inner.parents):
        if folder == top.parent:
            break
        with contextlib.suppress(OSError, ValueError):
            if found := read(folder):
                yield found


def _of_version_2(folder):
    quota, period = (folder / "cpu.max").read_text().split()
    return None if quota == "max" else (int(quota) / int(period), folder / "cpu.max")


def _of_version_1(folder):
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    period = int((folder / "cpu.cfs_period_us").read_text())
    return (quota / period, folder / "cpu.cfs_quota_us") if quota > 0 else None


def machine_ticks(stat: str) -> int:
    """Busy ticks of all CPUs in the text of /proc/stat: user, nice, system, irq, softirq (see proc(5))."""
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in stat.split(maxsplit=8)[1:8])
    return user + nice + system + irq + softirq


def process_ticks(stat: str) -> int:
    """Busy ticks in the text of /proc/PID/stat: fields 14 to 17, of the process and waited-for children."""
    return sum(int(field) for field in stat.rpartition(")")[2].split()[11:15])
