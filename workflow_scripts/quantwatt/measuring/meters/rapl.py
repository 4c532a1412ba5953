"""Read CPU packages and memory from RAPL's energy counters under /sys/class/powercap (Intel; AMD since Linux 5.8).

The meter sums all domains named package-N and dram, or only one of the two kinds. It leaves out core and uncore (parts
of their package), psys (contains all the others), and intel-rapl-mmio (the same packages again).
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quantwatt.measuring.meters import Metering, MeterUnavailable
from quantwatt.measuring.meters.sampler import SampledMeter, Sampler
from quantwatt.measuring.meters.trace import STILL_S

POWERCAP = "/sys/class/powercap"
KINDS = {"all": ("package", "dram"), "package": ("package",), "dram": ("dram",)}  # beginnings of a domain's name
INTERVAL_MS = 100  # shortest interval: each sample costs CPU time, and the counters wrap only after minutes


class RaplMeter(SampledMeter):
    name = "rapl"
    reads = "cpu"

    def __init__(self, sampler: Any, source: str, domains: Sequence[str]):
        super().__init__(sampler, source)
        self._domains = domains

    def provenance(self) -> dict[str, Any]:
        return {**super().provenance(), "domains": self._domains}


def open_meter(
    settings: Metering,
    device: str | None = None,
    make_sampler: Callable[..., Any] = Sampler,
    base: str | Path = POWERCAP,
) -> RaplMeter:
    """Open a meter of all packages and their memory.

    Args:
        settings: Metering; its `domains` (one of KINDS) and interval_ms are read.
        device: not used; the packages are read on every device.
        base: the powercap folder, for tests.
    Raises:
        MeterUnavailable: there is no such domain, or a counter cannot be read without root.
    """
    kind = settings.domains
    if kind not in KINDS:
        raise MeterUnavailable(f"RAPL has no domains {kind!r}: choose {', '.join(KINDS)}.")
    domains = find_domains(base, KINDS[kind])
    if not domains:
        named = "" if kind == "all" else f" named {kind}"
        raise MeterUnavailable(
            f"no RAPL energy counter{named} under {base} (a virtual machine, or the module intel_rapl_msr is not "
            "loaded): choose the meter estimate or none."
        )
    arguments = {"domains": [[path, range_uj] for _, path, range_uj in domains]}
    reader(**arguments)
    labels = [label for label, _, _ in domains]
    sampler = make_sampler("rapl", arguments, max(INTERVAL_MS, settings.interval_ms or 0) / 1000)
    return RaplMeter(sampler, "RAPL energy_uj of " + " + ".join(labels), labels)


def find_domains(base: str | Path = POWERCAP, names: tuple[str, ...] = KINDS["all"]) -> list[tuple[str, str, int]]:
    """Return [(label, path of energy_uj, max_energy_range_uj)] of the domains whose names begin with one of `names`."""
    domains = []
    for folder in sorted(Path(base).glob("intel-rapl:*")):
        label = _read(folder / "name")
        if label.startswith(names):
            where = f"{label} ({folder.name})"
            domains.append((where, str(folder / "energy_uj"), int(_read(folder / "max_energy_range_uj"))))
    return domains


def reader(domains: Sequence[Sequence[Any]]) -> Callable[[], tuple[float, float, float]]:
    """Return a function that returns (NaN, joules of all `domains` since this call, NaN), corrected for wraps.

    The function raises MeterUnavailable if the counter of a domain stops: in the sum, the other domains' joules would
    hide the fault. Linux does not list domains whose counter never moves.

    Args:
        domains: [[path of energy_uj, max_energy_range_uj]].
    """
    last = [int(_read(path)) for path, _ in domains]
    moved_s = [time.perf_counter()] * len(domains)
    total_uj = 0

    def read():
        nonlocal total_uj
        for index, (path, range_uj) in enumerate(domains):
            now, now_s = int(_read(path)), time.perf_counter()
            if now != last[index]:
                moved_s[index] = now_s
            elif now_s - moved_s[index] >= STILL_S:
                raise MeterUnavailable(f"{path} stood still for {now_s - moved_s[index]:.1f} s")
            total_uj += now - last[index] + (range_uj if now < last[index] else 0)
            last[index] = now
        return math.nan, total_uj / 1e6, math.nan

    return read


def _read(path):
    try:
        return Path(path).read_text().strip()
    except PermissionError as error:
        raise MeterUnavailable(
            f"{path} is not readable by this user: allow it with `sudo chmod a+r {path}` "
            "(and for the energy_uj files of the other domains; this lasts until the next boot)."
        ) from error
    except OSError as error:
        raise MeterUnavailable(f"{path} cannot be read ({error.strerror}): choose another meter.") from error
