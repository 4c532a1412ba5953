"""What benchmarks leave behind: rows as JSON, the machine that they come from, and a figure beside them."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance


def write(output, rows, packages, machine=None):
    """Write OUTPUT.json with the rows, and OUTPUT.machine.json with where they come from.

    Args:
        output: path of the JSON file.
        packages: names of those whose versions matter.
        machine: further entries of the second file.
    """
    manifest.write_json(output, rows)
    described = {**provenance(packages), **(machine or {})}
    manifest.write_json(Path(output).with_suffix(".machine.json"), described)


@contextlib.contextmanager
def workers(commands, variables=None):
    """Processes that take turns: {name: function(**task) -> answer}.

    Args:
        commands: {name: [argument]} of programs that answer each line of JSON on stdin by one on stdout.
        variables: of the environment, beside this process's own.

    Raises:
        DataError: one ended before its answer.
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
            raise DataError(f"a worker of the benchmark ended early: {' '.join(map(str, process.args))}.")
        return json.loads(answer)

    try:
        yield {name: lambda process=process, **task: ask(process, **task) for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()


@contextlib.contextmanager
def figure(output, size):
    """A matplotlib figure to be drawn on, which is written beside OUTPUT.json as a PNG.

    Args:
        size: (width, height), inches.
    """
    import matplotlib  # not every environment that a benchmark's workers run in has it
    from matplotlib.figure import Figure

    from quantwatt.report.figures import DPI, STYLE

    with matplotlib.rc_context(STYLE), manifest.atomic_path(Path(output).with_suffix(".png")) as temporary:
        drawn = Figure(figsize=size, layout="constrained")
        yield drawn
        drawn.savefig(temporary, dpi=DPI, metadata={"Software": None})
