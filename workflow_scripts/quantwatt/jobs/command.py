"""Run scripts: signals, exit codes, and the Python interpreter of rules."""

import argparse
import contextlib
import ctypes
import gc
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT
from quantwatt.jobs import lean_imports

PROGRESS_FD = "QUANTWATT_PROGRESS_FD"  # environment variable in rules' jobs: number of an open file descriptor
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
KEPT_BYTES = 2**30
NO_VERDICT = 3  # exit code of a script whose codes are verdicts, where it could not judge
SIGNALS = (signal.SIGINT, signal.SIGTERM)
COLLECT_AFTER = 50_000  # new objects between two garbage collections: at Python's 700, a tenth of a short job's time
SIGNAL_GRACE_S = 5  # seconds after a signal in which further signals are ignored
_told_to_end = False  # whether a signal has asked this program to end


class DecidingParser(argparse.ArgumentParser):
    """Of a script whose exit codes are verdicts: a wrong argument ends with NO_VERDICT, not with argparse's 2."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(NO_VERDICT, f"{self.prog}: error: {message}\n")


def run(main: Callable[[], str | int | None], fetches: bool = False) -> NoReturn:
    """Call `main()`; a DataError is printed as one sentence with exit code 1, any other exception is a bug.

    Only scripts with `fetches` contact the Hugging Face hub: a cluster node may have no network, and a library that
    checks there whether a model has changed would wait for an answer.

    SIGINT (Ctrl-C) and SIGTERM also end in one sentence, after unfinished files are removed.
    """
    answer_signals()
    lean_imports.allowed = True
    gc.set_threshold(COLLECT_AFTER)
    if not fetches:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, which no script does at its top
    if PROGRESS_FD in os.environ:  # a rule's job, which must not go on writing while jobs of the next run write
        end_with_parent()
    try:
        try:
            ending = main()
        except DataError as error:
            ending = f"error: {error}"
        for number in SIGNALS:  # the script's work is done
            signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:
        ending = "interrupted: run again to go on."
    sys.exit(ending)


def answer_signals() -> None:
    """Raise KeyboardInterrupt at SIGINT and SIGTERM, but only once while unfinished files are removed.

    Ctrl-C sends a job two signals: SIGINT from the terminal, and SIGTERM when its parent shell ends. A signal that was
    ignored from the start stays ignored, such as SIGINT in background jobs of a shell script.
    """
    answered = -math.inf

    def interrupt(number, frame):
        nonlocal answered
        global _told_to_end
        _told_to_end = True
        if time.monotonic() > answered + SIGNAL_GRACE_S:
            answered = time.monotonic()
            raise KeyboardInterrupt

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def end_if_told() -> None:
    """Raise KeyboardInterrupt again if a signal came: a library may have swallowed it, as a bare `except:` does."""
    if _told_to_end:
        raise KeyboardInterrupt


def end_with_parent() -> None:
    """Let the system terminate this process when its parent is killed, so that it does not keep the device busy."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def keep_memory() -> None:
    """Let the C library keep up to KEPT_BYTES of freed memory for what is allocated next, instead of returning it.

    To get the memory of each layer's activations from the system again takes a tenth of the time of drawing.
    """
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(threshold, KEPT_BYTES)


def use_this_interpreter() -> None:
    """Make `python` in a rule the interpreter that runs Snakemake, whether or not its environment was activated.

    With --sdm conda the rule's conda environment still takes precedence. Conda inserts an environment at the position
    on PATH of the active environment, which may be behind this interpreter; therefore no environment may count as
    active. Packages in the user's home folder are excluded. A folder with a `python` that QUANTWATT_PYTHON names comes
    first: tests use it to start faster.
    """
    first = [folder for folder in [os.environ.get("QUANTWATT_PYTHON")] if folder]
    os.environ["PATH"] = os.pathsep.join([*first, str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ.pop("CONDA_SHLVL", None)  # the number of active conda environments
    os.environ["PYTHONNOUSERSITE"] = "1"


def library_python(name: str, conda: bool) -> str:
    """The interpreter of a library with a separate environment.

    Args:
        name: of the environment; conda: whether conda creates the environment and puts it first on PATH.
    Returns:
        path relative to the project in the environment that `make backends` creates; `python` if there is none, or
        with conda.
    """
    folder = Path(".venvs", name)
    return str(folder / "bin" / "python") if (PROJECT / folder / "installed").exists() and not conda else "python"
