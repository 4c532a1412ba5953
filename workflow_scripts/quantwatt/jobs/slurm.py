"""Let Snakemake's SLURM plugin work on clusters without accounting."""

import os
import shutil
import subprocess

from quantwatt.jobs.fingerprints import ROOT

FROM_SQUEUE = ROOT / "profiles/slurm/no-accounting"  # a folder with a replacement for sacct


def use_squeue_without_accounting() -> None:
    """Put a `sacct` that calls `squeue` first on PATH if the cluster's `sacct` is missing or fails.

    The plugin reads jobs' states with `sacct` and treats its failure as temporary: without accounting it would wait for
    an hour. Even when configured for `squeue`, it falls back to an installed `sacct` while the controller is down.
    """
    if not shutil.which("squeue"):  # no SLURM
        return
    try:
        subprocess.run(["sacct", "--noheader", "--starttime", "now"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        os.environ["PATH"] = os.pathsep.join([str(FROM_SQUEUE), os.environ["PATH"]])
