"""A GPU for each job: of several in one machine, a program takes one that no other program of the user's has taken.

What the user or a scheduler has chosen stands: the one GPU in CUDA_VISIBLE_DEVICES is used as it is, and where it names
several, each program takes one of those. What is taken is a locked file, which the system unlocks when the program
ends, however it ends.
"""

import fcntl
import os
import stat
import sys
import time
from pathlib import Path

from quantwatt.artifacts.errors import DataError
from quantwatt.jobs import cuda_driver, machine
from quantwatt.jobs.cuda_driver import VISIBLE

OF_SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
LOOK_AGAIN_S = 1
_taken = []  # open, and thereby locked, until this program ends


def claim(device, every=False):
    """Take a GPU, once, and make it the only one that CUDA will see in this program and in those that it starts.

    Waits while other programs have them all. CUDA reads its variable when it is first used, so this comes before.

    Args:
        device: "cuda"; with "cpu" there is nothing to take.
        every: take all that this program may use, and leave them visible.
    Raises:
        DataError: torch cannot compute on the device here, or there is no folder for the locks.
    """
    machine.require(device)
    names = choice() if device == "cuda" and not _taken else {}
    wanted = [[name] for name in sorted(names, key=names.get)] if every else [list(names)]
    for candidates in filter(None, wanted):
        name = _first_free(candidates, names)
        if not every:
            os.environ[VISIBLE] = name


def count():
    """How many jobs may use a GPU at once."""
    return max(1, len(choice()))


def choice():
    """{name for CUDA: UUID} of the GPUs that there are to choose from; empty where the choice is made or unknown."""
    listed = os.environ.get(VISIBLE)
    if listed is None and any(name in os.environ for name in OF_SLURM):
        return {}
    uuids = [device["uuid"] for device in cuda_driver.ask(listed).devices]
    if listed is None:
        return {uuid: uuid for uuid in uuids}
    names = [name.strip() for name in listed.split(",")]
    if len(names) == 1:
        return {}
    slices = {name: name for name in names if name.startswith("MIG-")}
    return slices or dict(zip(names, uuids, strict=False))  # of slices CUDA shows a program one alone


def _first_free(names, uuids):
    """Lock the first of the GPUs that is free, or becomes so; returns its name."""
    folder, waiting = _folder(), False
    while True:
        for name in names:
            file = (folder / f"{uuids[name].replace('/', '-')}.lock").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            _taken.append(file)
            return name
        if not waiting:
            print(f"waiting for a GPU: other programs have {', '.join(names)} (locks: {folder})", file=sys.stderr)
        waiting = True
        time.sleep(LOOK_AGAIN_S)


def _folder():
    """Where all programs of this user on this machine keep their locks."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    folder = runtime / "quantwatt" if os.access(runtime, os.W_OK) else Path(f"/tmp/quantwatt-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise DataError(f"{folder}: the GPUs' locks cannot be kept there: {error.strerror}.") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise DataError(f"{folder}: not a folder of this user's, and the GPUs' locks are kept there: remove it.")
    return folder
