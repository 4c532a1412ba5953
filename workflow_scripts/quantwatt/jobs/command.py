"""How scripts are run, and how they end."""

import contextlib
import ctypes
import math
import os
import signal
import sys
import time
from pathlib import Path

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT

PROGRESS_FD = "QUANTWATT_PROGRESS_FD"  # environment variable of rules' jobs: number of an open file descriptor
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SIGNAL_GRACE_S = 5  # after a signal: how long others go unanswered, in seconds


def run(main, fetches=False):
    """Call `main()`; a DataError is printed as one sentence, exit code 1, and any other exception is a bug.

    Only what `fetches` asks a hub: a node of a cluster may have no network, and a library that asks there whether a
    model has changed would wait for an answer.

    SIGINT (Ctrl-C) and SIGTERM are a sentence, too, once what was half-written is removed.
    """
    answer_signals()
    if not fetches:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, which no script does at its top
    if PROGRESS_FD in os.environ:  # a rule's job, which must not go on writing beside those of the next run
        end_with_parent()
    try:
        try:
            ending = main()
        except DataError as error:
            ending = f"error: {error}"
        for number in SIGNALS:  # all is done
            signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:
        ending = "interrupted: run again to go on."
    sys.exit(ending)


def answer_signals():
    """Raise KeyboardInterrupt at SIGINT and SIGTERM, and not a second one while what is half-written is removed.

    A job hears of Ctrl-C twice: from the terminal, and by SIGTERM when the shell that started it has ended. One that
    was ignored from the start, as SIGINT is in the background of a shell's script, stays ignored.
    """
    answered = -math.inf

    def interrupt(number, frame):
        nonlocal answered
        if time.monotonic() > answered + SIGNAL_GRACE_S:
            answered = time.monotonic()
            raise KeyboardInterrupt

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def end_with_parent():
    """Let the system end this process when the one that started it is killed, lest it keep the device busy."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def use_this_interpreter():
    """Make `python` in a rule the interpreter that runs Snakemake, whether or not its environment was activated.

    With --sdm conda the rule's own environment still goes before it: conda puts an environment in the place on PATH of
    the one that is active, which may be behind this interpreter's, so none may be. Packages of the user's home are left
    out. A folder that QUANTWATT_PYTHON names goes before all, with a `python` of its own: tests start theirs faster.
    """
    first = [folder for folder in [os.environ.get("QUANTWATT_PYTHON")] if folder]
    os.environ["PATH"] = os.pathsep.join([*first, str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ.pop("CONDA_SHLVL", None)  # how many are active
    os.environ["PYTHONNOUSERSITE"] = "1"


def library_python(name, conda):
    """The interpreter of a library that has an environment of its own.

    Args:
        name: of that environment; conda: whether conda makes it, which puts it first on PATH.
    Returns:
        path relative to the project of what `make backends` has made, or `python` where it has not, or conda does.
    """
    own = Path(".venvs", name)
    return str(own / "bin" / "python") if (PROJECT / own / "installed").exists() and not conda else "python"
