"""What the SLURM plugin of Snakemake needs of a cluster and may not find there."""

import os
import shutil
import subprocess

from quantwatt.jobs.fingerprints import ROOT

FROM_SQUEUE = ROOT / "profiles/slurm/no-accounting"  # holds a sacct


def use_squeue_without_accounting():
    """Put a `sacct` that asks `squeue` in front of PATH where a cluster has none, or one that fails.

    The plugin asks jobs' states of `sacct`, and takes a failure for one that passes: without accounting it would wait
    for an hour. Even told to ask `squeue`, it goes back to a `sacct` that is installed while the controller is down.
    """
    if not shutil.which("squeue"):  # no SLURM
        return
    try:
        subprocess.run(["sacct", "--noheader", "--starttime", "now"], capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        os.environ["PATH"] = os.pathsep.join([str(FROM_SQUEUE), os.environ["PATH"]])
