"""One progress bar for all long loops, with count and rate.

A rule sends its script's output to a log file, but what a person waits for belongs on the terminal: Snakemake's jobs
inherit a copy of its stderr as file descriptor PROGRESS_FD, and bars are drawn there. A script that is run by hand
draws on its own stderr.

Several jobs run at once. The first of them draws a bar, which it goes on rewriting; the others, and all where there is
no terminal, write whole lines, seldom, so that no two share a line.
"""

import fcntl
import os
import sys

from tqdm import tqdm

from quantwatt.jobs.command import PROGRESS_FD

REDRAW_S, LINE_S = 0.5, 30  # between two updates: of a bar, and of whole lines
CLEARED = "\r\x1b[K"  # empties the line of a terminal: another job's bar may stand there, and is drawn again below
_terminals = {}  # {name: file descriptor with the lock} of those on which this process draws


def progress(iterable=None, total=None, description=None, unit="it"):
    """A tqdm bar over `iterable`, or one to be updated by hand where there is none."""
    stream = _stream()
    how = {"total": total, "desc": description, "unit": unit}
    if _may_draw(stream):
        return tqdm(iterable, file=stream, mininterval=REDRAW_S, leave=False, dynamic_ncols=True, **how)
    return tqdm(iterable, file=_Lines(stream), mininterval=LINE_S, position=0, ncols=0, **how)


def _may_draw(stream):
    """Whether bars may be rewritten: on a terminal, by the first process that asks, until it ends."""
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
    except (OSError, ValueError):  # no terminal, one that cannot be opened by name, or another job draws
        return False
    return True


class _Lines:
    """A stream for tqdm that writes each update as a line of its own, in one call."""

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
