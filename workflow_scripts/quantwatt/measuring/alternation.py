"""Fresh processes of a method and its baseline that alternate, so that drift affects both in the same way."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.jobs.progress import progress
from quantwatt.measuring.settings import Measuring

METHOD, BASELINE = "method", "baseline"
LOADING_S = 8  # estimated loading time of a process, for the progress bar
SCRIPTS = Path(__file__).resolve().parents[2]

Result = dict[str, Any]  # of one fresh process


def schedule(n_processes: int, configurations: Sequence[str]) -> list[tuple[str, int]]:
    """Return [(configuration, process)]: every round runs all configurations, and every second round in reverse."""
    turns = [configurations[:: 1 if process % 2 == 0 else -1] for process in range(n_processes)]
    return [(name, process) for process, turn in enumerate(turns) for name in turn]


def run_process(task: Mapping[str, Any], path: str | Path, bar: "Bar") -> Result:
    """Run one fresh process and return its result.

    Raises:
        DataError: the process ended with an error, which it has printed.
    """
    manifest.write_json(path, task)
    paths = [str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    command_line = [sys.executable, "-m", "quantwatt.measuring.fresh_process", path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:  # ty: ignore[not-iterable]  (a pipe)
            bar.update(line)
    if process.returncode == -9:
        reason = "the process was killed, most likely by the system because memory ran out"
        return {"status": "oom", "reason": reason}
    if process.returncode != 0:
        raise DataError(f"measuring {task['checkpoint']} failed; the error is printed above.")
    result = manifest.read_json(task["output"])
    Path(task["output"]).unlink()
    return result


class Bar:
    """A progress bar in seconds, with the current step and the mean power of the last block."""

    def __init__(self, method: str, settings: Measuring):
        once = 2 * settings.idle_s + 3 * settings.phases_s
        energy_s = settings.blocks_per_process * settings.block_s
        each = LOADING_S + settings.warmup_s + settings.latency_s_per_process + energy_s
        self.total = 2 * (once + settings.processes * each)
        self.method, self.start = method, time.perf_counter()

    def __enter__(self) -> Self:
        self.bar = progress(total=round(self.total), description=f"measuring {self.method}", unit="s")
        self.ended, self.ticking = threading.Event(), threading.Thread(target=self.tick, daemon=True)
        self.ticking.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.ticking.join()
        self.bar.close()

    def tick(self) -> None:
        """Advance the bar every second, also while a long block or warm-up prints nothing."""
        while not self.ended.wait(1):
            elapsed = round(time.perf_counter() - self.start)
            self.bar.total = max(self.bar.total or 0, elapsed + 1)
            self.bar.update(elapsed - self.bar.n)

    def update(self, line: str) -> None:
        """Show a progress line of the process; any other line (printed by a library) goes to the log."""
        message = None
        with contextlib.suppress(json.JSONDecodeError):
            message = json.loads(line)
        if not isinstance(message, dict):
            print(line, end="", file=sys.stderr)
            return
        if "watts" in message:
            self.bar.set_postfix(watts=f"{message['watts']:.1f}", refresh=False)
        self.bar.set_description(f"measuring {self.method}, {message.get('step', '')}")
