"""Start the processes in which a cell is measured, and show their progress."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.jobs.progress import progress
from quantwatt.measuring.fresh_process import MODULE
from quantwatt.measuring.settings import Measuring

LOADING_S = 4  # estimated loading time of a process, for the progress bar
SCRIPTS = Path(__file__).resolve().parents[2]

Result = dict[str, Any]  # of one process


class Processes:
    """Runs tasks of fresh_process.py, each in a process of its own."""

    def __init__(self, folder: str | Path, bar: "Bar"):
        """`folder`: for the files of tasks and results."""
        self.folder, self.bar = Path(folder), bar
        self.server: subprocess.Popen[str] | None = None  # forks a process for each task
        self.unread = 0  # its answers that nobody has waited for

    def __enter__(self) -> Self:
        self.server = _start([], stdin=subprocess.PIPE)  # it imports PyTorch meanwhile
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if self.server:
            if kind is not None:
                self.server.terminate()  # its fork ends with it
            self.server.communicate()  # closes its input, at which it ends
            self.server = None

    def fresh(self, task: Mapping[str, Any]) -> Result:
        """Do a task in a new interpreter, whose memory is its own.

        Raises:
            DataError: the process ended with an error, which it has printed.
        """
        path, task = self._write(task)
        with _start([path]) as process:
            for line in process.stdout or ():
                self._preload(self.bar.update(line).get("modules"))
        return self._result(task, process.returncode)

    def forked(self, task: Mapping[str, Any]) -> Result:
        """Do a task in a fork of a process that has imported the libraries; raises as `fresh`."""
        path, task = self._write(task)
        return self._result(task, self._ask(path))

    def _preload(self, modules):
        """Let the server import modules, without waiting for it."""
        if self.server and modules:
            path = self.folder / "modules.json"
            manifest.write_json(path, {"modules": modules})
            self._tell(self.server, path)

    def _tell(self, server, path):
        self.unread += 1
        with contextlib.suppress(BrokenPipeError):
            print(path, file=server.stdin, flush=True)

    def _ask(self, path):
        """How the task in this file ended: the exit code of its process, or of the server."""
        self.server = self.server or _start([], stdin=subprocess.PIPE)
        self._tell(self.server, path)
        for line in self.server.stdout or ():
            ended = self.bar.update(line).get("ended")
            if ended is not None:
                self.unread -= 1
                if not self.unread:
                    return ended
        server, self.server, self.unread = self.server, None, 0
        return server.wait()

    def _write(self, task):
        """(path of the task's file, the task with the path of its result)."""
        path, task = self.folder / "task.json", {**task, "output": str(self.folder / "result.json")}
        manifest.write_json(path, task)
        return str(path), task

    def _result(self, task, ended):
        if ended == -9:
            reason = "the process was killed, most likely by the system because memory ran out"
            return {"status": "oom", "reason": reason}
        if ended != 0:
            names = " and ".join(dict.fromkeys(task["checkpoints"].values()))
            raise DataError(f"measuring {names} failed; the error is printed above.")
        result = manifest.read_json(task["output"])
        Path(task["output"]).unlink()
        return result


def _start(arguments, **pipes):
    paths = [str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("OPENBLAS_NUM_THREADS", None)  # the jobs' own limit, see rules/common.smk
    command_line = [sys.executable, "-m", MODULE, *arguments]
    return subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True, env=environment, **pipes)


class Bar:
    """A progress bar in seconds, with the step and the last block's mean power; measuring may end before it is full."""

    def __init__(self, method: str, settings: Measuring):
        each = LOADING_S + settings.warmup_s
        self.total = LOADING_S + 2 * settings.idle_s + settings.processes * each + settings.limit_s
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

    def update(self, line: str) -> dict[str, Any]:
        """Show a progress line of the process and return it; any other line (printed by a library) goes to the log."""
        message = None
        with contextlib.suppress(json.JSONDecodeError):
            message = json.loads(line)
        if not isinstance(message, dict):
            print(line, end="", file=sys.stderr)
            return {}
        if "watts" in message:
            self.bar.set_postfix(watts=f"{message['watts']:.1f}", refresh=False)
        if "step" in message:
            self.bar.set_description(f"measuring {self.method}, {message['step']}")
        return message
