"""One progress bar for all long loops, with count and rate.

A rule sends its script's output to a log file, but what a person waits for belongs on the terminal: Snakemake's jobs
inherit a copy of its stderr as file descriptor PROGRESS_FD, and bars are drawn there. A script that is run by hand
draws on its own stderr.
"""

import os
import sys

from tqdm import tqdm

from quantwatt.command import PROGRESS_FD

REDRAW_S, LINE_S = 0.5, 30  # between two updates: on a terminal, and in a file


def progress(iterable=None, total=None, description=None, unit="it"):
    """A tqdm bar over `iterable`, or one to be updated by hand where there is none."""
    stream = _stream()
    return tqdm(
        iterable,
        total=total,
        desc=description,
        unit=unit,
        file=stream,
        mininterval=REDRAW_S if stream.isatty() else LINE_S,
        leave=not stream.isatty(),
        dynamic_ncols=True,
    )


def _stream():
    try:
        return os.fdopen(os.dup(int(os.environ[PROGRESS_FD])), "w")
    except (KeyError, ValueError, OSError):  # not set, or not open in this process
        return sys.stderr
