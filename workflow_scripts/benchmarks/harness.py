"""Outputs of the benchmarks: rows as JSON, a description of the machine, and a figure; and their worker processes."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance

ENDING_S = 60  # after which a worker that was told to end is killed


def write(output, rows, packages, machine=None):
    """Write OUTPUT.json with the rows, and OUTPUT.machine.json with the machine and versions that they come from.

    Args:
        output: path of the JSON file.
        packages: names of the packages whose versions are recorded.
        machine: further entries of the second file.
    """
    manifest.write_json(output, rows)
    described = {**provenance(packages), **(machine or {})}
    manifest.write_json(Path(output).with_suffix(".machine.json"), described)


class Worker:
    """A worker process that answers tasks one at a time: worker(**task) -> answer."""

    def __init__(self, command, environment):
        """Start the program; it answers each line of JSON on stdin with one line of JSON on stdout."""
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, **task):
        """Answer a task.

        Raises:
            DataError: the worker ended before it answered.
        """
        with contextlib.suppress(OSError, ValueError):  # it has ended, or was: the answer is empty
            print(json.dumps(task), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            called = " ".join(map(str, self.process.args))
            raise DataError(f"a worker of the benchmark ended before it answered: {called}.")
        return json.loads(answer)

    def end(self, seconds):
        """Tell it to end, and kill it if it has not ended after `seconds`: it may compile or wait for a driver."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def workers(commands, variables=None, ending_s=ENDING_S):
    """Worker processes: {name: Worker}.

    Args:
        commands: {name: [argument]} of programs, as for Worker.
        variables: environment variables, in addition to those of this process.
        ending_s: seconds that each has to end.
    """
    environment = {**os.environ, **(variables or {})}
    started = {name: Worker(command, environment) for name, command in commands.items()}
    try:
        yield started
    finally:
        for worker in started.values():
            worker.end(ending_s)


@contextlib.contextmanager
def figure(output, size):
    """A matplotlib figure to draw on, which is then written next to OUTPUT.json as a PNG.

    Args:
        size: (width, height), inches.
    """
    import matplotlib  # missing in some of the environments that workers run in
    from matplotlib.figure import Figure

    from quantwatt.report.figures import DPI, STYLE

    with matplotlib.rc_context(STYLE), manifest.atomic_path(Path(output).with_suffix(".png")) as temporary:
        drawn = Figure(figsize=size, layout="constrained")
        yield drawn
        drawn.savefig(temporary, dpi=DPI, metadata={"Software": None})
