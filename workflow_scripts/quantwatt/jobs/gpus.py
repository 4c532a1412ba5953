"""Claim a GPU for each job: a program takes a GPU that no other program of the same user has claimed.

The choice of the user or a scheduler is respected: a single GPU in CUDA_VISIBLE_DEVICES is used without a claim, and if
the variable names several GPUs, each program claims one of them. A claim is a locked file, which the system unlocks
when the program ends for any reason.
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
_taken = []  # open lock files; they stay locked until this program ends


def claim(device: str, every: bool = False) -> None:
    """Claim a GPU once, and make it the only GPU that CUDA shows to this program and its child processes.

    Waits while other programs have claimed all GPUs. Must be called before CUDA is first used, because CUDA then reads
    its environment variable.

    Args:
        device: "cuda"; with "cpu" nothing is claimed.
        every: claim all GPUs that this program may use, and leave all of them visible.
    Raises:
        DataError: torch cannot compute on the device on this machine, or there is no folder for the locks.
    """
    machine.require(device)
    names = choice() if device == "cuda" and not _taken else {}
    wanted = [[name] for name in sorted(names, key=names.__getitem__)] if every else [list(names)]
    for candidates in filter(None, wanted):
        name = _first_free(candidates, names)
        if not every:
            os.environ[VISIBLE] = name


def count() -> int:
    """The number of jobs that may use a GPU at once."""
    return max(1, len(choice()))


def choice() -> dict[str, str]:
    """{name for CUDA: UUID} of the GPUs to choose from; empty if the choice is made already, or is unknown."""
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
    return slices or dict(zip(names, uuids, strict=False))  # CUDA shows a program only one of several MIG slices


def _first_free(names, uuids):
    """Lock the first GPU that is free or becomes free; returns its name."""
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
    """The folder in which all programs of this user on this machine keep their locks."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    folder = runtime / "quantwatt" if os.access(runtime, os.W_OK) else Path(f"/tmp/quantwatt-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise DataError(f"{folder}: the GPUs' locks cannot be kept there: {error.strerror}.") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise DataError(f"{folder}: not a folder of this user's, and the GPUs' locks are kept there: remove it.")
    return folder
