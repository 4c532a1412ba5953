"""Record the commit, machine and versions that produced a result."""

import contextlib
import datetime
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any


def provenance(packages: Iterable[str] = ("torch", "diffusers", "transformers")) -> dict[str, Any]:
    """The provenance of a result: commit, machine, Python and the installed versions of `packages`."""

    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
    )
    return {
        "commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "versions": {name: version(name) for name in packages},
    }


def this_minute() -> str:
    """The date and time in UTC, "2026-11-30 13:20 UTC": for readers, as no figure may depend on the wall clock."""
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def cpu_name() -> str | None:
    """The processor's name, or None where it is unknown."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None
