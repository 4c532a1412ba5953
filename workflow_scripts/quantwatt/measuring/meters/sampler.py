"""Read a meter at a fixed interval in a separate process, so that the measured program cannot delay a reading.

The process reads two commands from its input, `start` and `stop`, and answers each with a line of JSON and the samples
as 8-byte floats. It ends with the program that started it. Both processes use the machine's monotonic clock. If the
process dies, hangs or loses its sensor, the current window is lost; the next `start` begins a new process.
"""

import contextlib
import gc
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantwatt import registry
from quantwatt.measuring.meters import Meter, MeterUnavailable
from quantwatt.measuring.meters.trace import Trace, empty_trace, trace_of

BEGIN_DEADLINE_S = 60  # the process starts its interpreter and the sensor's library
DEADLINE_S = 5
COLUMNS = 4  # of a sample: time in s, watts, counter in J, the sensor's timestamp in s


class Sampling:
    """Samples of `read() -> (watts, counter in J, the sensor's timestamp in s)`, each timed at the middle of its call.

    A value that was not read is NaN. If `read` raises MeterUnavailable (the sensor is lost), all three values are NaN
    and `fault` says why.
    """

    def __init__(
        self, read: Callable[[], tuple[float, float, float]], clock_ns: Callable[[], int] = time.perf_counter_ns
    ):
        self._read, self._clock_ns = read, clock_ns
        self.values = array("d")
        self.fault = None

    def take(self) -> None:
        before = self._clock_ns()
        try:
            watts, counter_j, sensor_s = self._read()
        except MeterUnavailable as error:
            self.fault, watts, counter_j, sensor_s = str(error), math.nan, math.nan, math.nan
        after = self._clock_ns()
        self.values.extend(((before + after) / 2e9, watts, counter_j, sensor_s))

    @property
    def samples(self) -> np.ndarray:  # [n, COLUMNS]
        return np.array(self.values).reshape(-1, COLUMNS)


class Sampler:
    """The process that samples `module.reader(**arguments)`; `module` is a name in quantwatt.measuring.meters."""

    def __init__(self, module: str, arguments: Mapping[str, Any], interval_s: float):
        self.interval_s = interval_s
        self._command = [sys.executable, "-m", __name__, module, json.dumps(arguments), str(interval_s)]
        self._process = self._begin()

    def start(self) -> None:
        """Start sampling, and return after the first sample.

        Raises:
            MeterUnavailable: the process cannot be started, or cannot read the sensor.
        """
        if self._process.stdout.closed or self._process.poll() is not None:
            self.close()
            self._process = self._begin()
        self._ask(b"start", BEGIN_DEADLINE_S)

    def stop(self) -> dict[str, Any]:
        """Take the last sample and return the arguments of `trace_of`, except `source`.

        Raises:
            MeterUnavailable: the process died or does not answer, and the samples are lost.
        """
        answer, samples = self._ask(b"stop", DEADLINE_S)
        if answer["fault"]:
            self.close()  # a new process also resets the state of the sensor's library
        return {**answer, "samples": samples}

    def close(self) -> None:
        if self._process.stdout.closed:  # closed before; a process that could not be killed is left running
            return
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(DEADLINE_S)
            self._process.stdout.close()
        except subprocess.TimeoutExpired:
            self._kill()

    def _begin(self):
        paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def _ask(self, word, deadline_s):
        with contextlib.suppress(OSError, ValueError):  # the process is dead: the answer is empty
            self._process.stdin.write(word + b"\n")
        answer = self._receive(deadline_s)
        if answer is None:
            self._kill()
            raise MeterUnavailable(
                f"the meter's sampling process did not answer for {deadline_s:g} s and was ended: "
                "what it had read is lost."
            )
        if not answer:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(DEADLINE_S)
            code = self._process.returncode
            how = f"signal {-code}" if code is not None and code < 0 else "its error is printed above"
            raise MeterUnavailable(f"the meter's sampling process ended early ({how}): what it had read is lost.")
        head, _, tail = answer.partition(b"\n")
        return json.loads(head)["answer"], np.frombuffer(tail).reshape(-1, COLUMNS)

    def _receive(self, deadline_s):
        """Return the bytes of one answer; b"" if the process ended, None if it was silent for `deadline_s`."""
        received, size, ready = bytearray(), None, select.poll()
        ready.register(self._process.stdout, select.POLLIN)
        while size is None or len(received) < size:
            if not ready.poll(deadline_s * 1000):
                return None
            part = os.read(self._process.stdout.fileno(), 1 << 20)
            if not part:
                return b""
            received += part
            if size is None and b"\n" in received:
                head = received.index(b"\n") + 1
                size = head + json.loads(received[:head])["bytes"]
        return bytes(received)

    def _kill(self):
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process inside a driver's call cannot be killed
            self._process.wait(1)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


class SampledMeter(Meter):
    """A meter over a sampler; a subclass gives `name` and `provenance`. Errors become the trace's `fault`."""

    def __init__(self, sampler: Any, source: str):
        self._sampler, self._source, self._fault = sampler, source, None

    def start(self) -> None:
        self._fault = None
        try:
            self._sampler.start()
        except MeterUnavailable as lost:
            self._fault = str(lost)

    def stop(self) -> Trace:
        try:
            return empty_trace(self._source, self._fault) if self._fault else self._trace()
        except MeterUnavailable as lost:
            return empty_trace(self._source, str(lost))

    def close(self) -> None:
        self._sampler.close()

    def provenance(self) -> dict[str, Any]:
        interval_ms = self._sampler.interval_s * 1000
        return {"meter": self.name, "source": self._source, "interval_ms": interval_ms, "fake": False}

    def _trace(self):
        return trace_of(source=self._source, **self._sampler.stop())


def serve(read: Callable[[], tuple[float, float, float]], interval_s: float, commands: Any, answers: Any) -> None:
    """Answer `start` and `stop` lines until the input ends or the sensor is lost.

    Args:
        commands, answers: unbuffered binary files; `commands` must work with select().
    """
    inputs, nothing, clock = [commands], [], time.perf_counter
    while commands.readline().strip() == b"start":
        sampling, late_s, n_late = Sampling(read), array("d"), 0
        cpu_s, begin_s = time.process_time(), clock()
        sampling.take()
        due = sampling.values[0] + interval_s
        _answer(answers, {})
        while not select.select(inputs, nothing, nothing, max(0.0, due - clock()))[0]:
            late_s.append(clock() - due)
            sampling.take()
            due += interval_s
            if clock() >= due:
                behind = 1 + int((clock() - due) / interval_s)
                n_late += behind
                due += behind * interval_s
        if commands.readline().strip() != b"stop":
            return
        sampling.take()
        n_late += max(0, int((sampling.values[-COLUMNS] - due) / interval_s))  # due before `stop`, never read
        late_ms = np.percentile(late_s, [50, 99]) * 1000 if late_s else [None, None]
        cost = {"cpu_s": time.process_time() - cpu_s, "wall_s": clock() - begin_s,
                "late_p50_ms": late_ms[0], "late_p99_ms": late_ms[1]}  # fmt: skip
        _answer(answers, {"n_late": n_late, "sampler": cost, "fault": sampling.fault}, sampling.values.tobytes())
        if sampling.fault:
            return


def _answer(answers, answer, samples=b""):
    message = memoryview(json.dumps({"answer": answer, "bytes": len(samples)}).encode() + b"\n" + samples)
    while message:
        message = message[answers.write(message) :]


def come_first() -> None:
    """Raise this process's scheduling priority where the user may, so that a busy machine misses no reading."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -5)
    with contextlib.suppress(OSError, AttributeError):  # only Linux has sched_setscheduler
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))


if __name__ == "__main__":
    name, arguments, interval = sys.argv[1:]
    reader = registry.load("meters", name).reader(**json.loads(arguments))
    gc.disable()  # no code here makes reference cycles
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the measuring program, and this process ends with it
    come_first()
    with open(0, "rb", buffering=0) as commands, open(1, "wb", buffering=0) as answers:
        serve(reader, float(interval), commands, answers)
