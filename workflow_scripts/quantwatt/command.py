"""How scripts are run, and how they end."""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

from quantwatt.manifest import DataError

PROGRESS_FD = "QUANTWATT_PROGRESS_FD"  # environment variable of rules' jobs: number of an open file descriptor
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def run(main):
    """Call `main()`; a DataError is printed as one sentence, exit code 1, and any other exception is a bug.

    SIGINT (Ctrl-C) and SIGTERM are a sentence, too, once what was half-written is removed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if PROGRESS_FD in os.environ:  # a rule's job, which must not go on writing beside those of the next run
        end_with_parent()
    try:
        sys.exit(main())
    except DataError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: run again to go on.")


def end_with_parent():
    """Let the system end this process when the one that started it is killed, lest it keep the device busy."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def use_this_interpreter():
    """Make `python` in a rule the interpreter that runs Snakemake, whether or not its environment was activated.

    With --sdm conda the rule's own environment still goes before it: conda puts an environment in the place on PATH of
    the one that is active, which may be behind this interpreter's, so none may be. Packages of the user's home are left
    out.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ.pop("CONDA_SHLVL", None)  # how many are active
    os.environ["PYTHONNOUSERSITE"] = "1"
