"""Outputs of the benchmarks: rows as JSON, a description of the machine, and a figure; and their worker processes."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance


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


@contextlib.contextmanager
def workers(commands, variables=None):
    """Worker processes that answer tasks one at a time: {name: function(**task) -> answer}.

    Args:
        commands: {name: [argument]} of programs that answer each line of JSON on stdin with one line of JSON on stdout.
        variables: environment variables, in addition to those of this process.

    Raises:
        DataError: a worker ended before it answered.
    """
    environment = {**os.environ, **(variables or {})}
    processes = {
        name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for name, command in commands.items()
    }

    def ask(process, **task):
        print(json.dumps(task), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        if not answer:
            raise DataError(f"a worker of the benchmark ended before it answered: {' '.join(map(str, process.args))}.")
        return json.loads(answer)

    try:
        yield {name: lambda process=process, **task: ask(process, **task) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()


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
