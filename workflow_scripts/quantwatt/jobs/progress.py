"""Progress bars for all long loops, with count and rate.

A rule redirects its script's output to a log file, but progress belongs on the terminal: Snakemake's jobs inherit a
copy of its stderr as file descriptor PROGRESS_FD, and bars are drawn there. A script that is run by hand draws on its
own stderr.

Several jobs may run at once. The first of them draws a bar and rewrites it. The other jobs, and all jobs without a
terminal, write complete lines at long intervals, so that outputs do not mix within a line.
"""

import fcntl
import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from quantwatt.jobs.command import PROGRESS_FD, end_if_told

REDRAW_S, LINE_S = 0.5, 30  # seconds between two updates of a bar, and between two lines
CLEARED = "\r\x1b[K"  # clears the terminal's line, where another job's bar may be; that job redraws its bar below
_terminals = {}  # {name: file descriptor with the lock} of the terminals on which this process draws


def progress(
    iterable: Iterable[Any] | None = None, total: float | None = None, description: str | None = None, unit: str = "it"
) -> tqdm:
    """A tqdm bar over `iterable`; without an iterable the caller updates it."""
    stream = _stream()
    options = {"total": total, "desc": description, "unit": unit}
    if _may_draw(stream):
        return _Bar(iterable, file=stream, mininterval=REDRAW_S, leave=False, dynamic_ncols=True, **options)
    return _Bar(iterable, file=_Lines(stream), mininterval=LINE_S, position=0, ncols=0, **options)


class _Bar(tqdm):
    """A bar at which a program also ends that was told to."""

    def __iter__(self):
        for each in super().__iter__():
            end_if_told()
            yield each

    def update(self, n=1):
        end_if_told()
        return super().update(n)


def _may_draw(stream):
    """Whether this process may rewrite bars: on a terminal, the first process that asks holds a lock until it ends."""
    try:
        name = os.ttyname(stream.fileno())
        if name not in _terminals:
            descriptor = os.open(name, os.O_WRONLY | os.O_NOCTTY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise
            _terminals[name] = descriptor
    except (OSError, ValueError):  # no terminal, a terminal that cannot be opened by name, or another job draws
        return False
    return True


class _Lines:
    """A stream for tqdm that writes each update as a separate line, in one call."""

    def __init__(self, stream):
        self.stream, self.start = stream, CLEARED if stream.isatty() else ""

    def write(self, text):
        if text := text.strip():
            self.stream.write(f"{self.start}{text}\n")
            self.stream.flush()

    def flush(self):
        self.stream.flush()


def _stream():
    try:
        return os.fdopen(os.dup(int(os.environ[PROGRESS_FD])), "w")
    except (KeyError, ValueError, OSError):  # not set, or not open in this process
        return sys.stderr
