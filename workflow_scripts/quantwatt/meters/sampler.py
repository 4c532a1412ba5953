"""Read a meter at a fixed interval, in a process of its own: the measured program cannot hold up a reading.

The process is started once for each meter, waits on its input and answers two words, `start` and `stop`, in
JSON lines. It ends with the program that started it. Both read the machine's monotonic clock.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from quantwatt import registry
from quantwatt.meters import MeterUnavailable
from quantwatt.meters.trace import trace_of


class Sampling:
    """Samples of `read() -> (watts or None, counter in J or None)`, each at the middle of its call."""

    def __init__(self, read, clock_ns=time.perf_counter_ns):
        self._read, self._clock_ns = read, clock_ns
        self.samples = []

    def take(self):
        before = self._clock_ns()
        watts, counter_j = self._read()
        after = self._clock_ns()
        self.samples.append(((before + after) / 2e9, watts, counter_j))


class Sampler:
    """The process that samples `module.reader(**arguments)`; `module` is a name in quantwatt.meters."""

    def __init__(self, module, arguments, interval_s):
        self.interval_s = interval_s
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, module, json.dumps(arguments), str(interval_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def start(self):
        """Returns when the first sample is taken."""
        self._ask("start")

    def stop(self):
        """(samples, n_late): the last sample is taken now."""
        answer = self._ask("stop")
        return answer["samples"], answer["n_late"]

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, word):
        line = b""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(word.encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise MeterUnavailable("the meter's sampling process ended early; its error is printed above.")
        return json.loads(line)


class SampledMeter:
    """A meter over a sampler; a subclass gives `name` and `provenance`."""

    estimated = False

    def __init__(self, sampler, source):
        self._sampler, self._source = sampler, source

    def start(self):
        self._sampler.start()

    def stop(self):
        return trace_of(*self._sampler.stop(), self._source)

    def close(self):
        self._sampler.close()

    def provenance(self):
        interval_ms = self._sampler.interval_s * 1000
        return {"meter": self.name, "source": self._source, "interval_ms": interval_ms, "fake": False}


def serve(read, interval_s, commands, answers):
    """Answer `start` and `stop` lines until the input ends; `commands` is unbuffered, for select()."""
    while commands.readline().strip() == b"start":
        sampling, n_late = Sampling(read), 0
        sampling.take()
        print("{}", file=answers, flush=True)
        due = time.perf_counter() + interval_s
        while not select.select([commands], [], [], max(0.0, due - time.perf_counter()))[0]:
            sampling.take()
            behind = int((time.perf_counter() - due) / interval_s)
            n_late += behind
            due += (1 + behind) * interval_s
        if commands.readline().strip() != b"stop":
            return
        sampling.take()
        print(json.dumps({"samples": sampling.samples, "n_late": n_late}), file=answers, flush=True)


if __name__ == "__main__":
    name, arguments, interval = sys.argv[1:]
    reader = registry.load("meters", name).reader(**json.loads(arguments))
    serve(reader, float(interval), open(0, "rb", buffering=0), sys.stdout)
