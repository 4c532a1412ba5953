"""Count the CPUs of the machine and the CPUs that this process may use, and read their busy time (Linux).

The CPU affinity and the cgroup quota limit what a process may use.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cpus:
    """Numbers of CPUs.

    machine: CPUs that are online.
    usable: CPUs that this process may use; a quota can make it a fraction.
    limit: what limits `usable` (a quota or the affinity), or None.
    source: where `machine` was read.
    """

    machine: int
    usable: float
    limit: str | None
    source: str


def count(proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> Cpus:
    """Count the CPUs of this machine and of this process.

    `machine` counts the cpuN lines of /proc/stat, because the busy ticks there are summed over them. In a container
    they are the CPUs of the host, whatever the container may use. Cpusets show up in the affinity.

    Args:
        proc, cgroups: paths of the kernel's file systems, for tests.
    """
    machine, source = _machine(proc)
    limits = {f"{quota:g} CPUs by {file}": quota for quota, file in _quotas(proc, Path(cgroups))}
    with contextlib.suppress(AttributeError):  # only Linux has sched_getaffinity
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
    """[(CPUs, file)]: the quotas of this process's cgroups and of all their parents, versions 2 and 1."""
    quotas = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path(proc, "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                quotas += _along(cgroups, path, _of_version_2)
            elif "cpu" in controllers.split(","):
                for name in (controllers, "cpu"):
                    quotas += _along(cgroups / name, path, _of_version_1)
    return quotas


def _along(top, path, read):
    """Yield the quotas of a cgroup and of its parents up to `top`.

    In a container without a cgroup namespace the path is the host's; only `top` exists there.
    """
    inner = top / path.lstrip("/")
    for folder in (inner, *inner.parents):
        if folder == top.parent:
            break
        with contextlib.suppress(OSError, ValueError):
            if quota := read(folder):
                yield quota


def _of_version_2(folder):
    quota, period = (folder / "cpu.max").read_text().split()
    return None if quota == "max" else (int(quota) / int(period), folder / "cpu.max")


def _of_version_1(folder):
    quota = int((folder / "cpu.cfs_quota_us").read_text())
    period = int((folder / "cpu.cfs_period_us").read_text())
    return (quota / period, folder / "cpu.cfs_quota_us") if quota > 0 else None


def machine_ticks(stat: str) -> int:
    """Sum the busy ticks of all CPUs in the text of /proc/stat: user, nice, system, irq, softirq (see proc(5))."""
    user, nice, system, _idle, _iowait, irq, softirq = (int(field) for field in stat.split(maxsplit=8)[1:8])
    return user + nice + system + irq + softirq


def process_ticks(stat: str) -> int:
    """Sum the busy ticks in the text of /proc/PID/stat: fields 14 to 17, the process and its waited-for children."""
    return sum(int(field) for field in stat.rpartition(")")[2].split()[11:15])


def child_ticks(stat: str) -> int:
    """Sum the busy ticks of waited-for children in the text of /proc/PID/stat: fields 16 and 17."""
    return sum(int(field) for field in stat.rpartition(")")[2].split()[13:15])
