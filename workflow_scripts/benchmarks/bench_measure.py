"""Measure what measuring itself costs and is worth: the power sampler's overhead, and the cells of the embedded model.

Of the sampler: (1) the CPU time and the lateness of the sampling process while nothing else runs; (2) the CPU time of a
process that only wakes up equally often, the lower bound for any sampler on this machine; (3) the slowdown of a fixed
single-thread loop with the sampler on. On and off alternate (off, on, on, off), so that a machine that warms up or gets
busy affects both equally. Without a GPU, pynvml reads a fake NVML compiled from tests/nvml/fakenvml.c: the result is
then the overhead of the sampler alone, without the driver's. Of the cells: measured_cells.py.
"""

import argparse
import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

from quantwatt import intervals
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.provenance import provenance
from quantwatt.jobs.progress import progress
from quantwatt.measuring import cpus
from quantwatt.measuring.meters import Metering, MeterUnavailable, open_meter

FAKE_SOURCE = Path(__file__).resolve().parents[2] / "tests/nvml/fakenvml.c"
LIBRARY = "libnvidia-ml.so.1"
GOAL_CPU_SHARE, GOAL_P99_MS = 0.01, 2.0


@contextlib.contextmanager
def nvml_meter(interval_ms):
    """The meter of this machine's GPU, or of the fake NVML where NVML cannot be initialised.

    Raises:
        DataError: there is neither a driver nor a compiler.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        settings = Metering("nvml", interval_ms)
        try:
            meter = open_meter(settings)
        except MeterUnavailable as unavailable:
            print(f"the fake NVML is read: {unavailable}", file=sys.stderr)
            load_fake(folder)
            meter = open_meter(settings)
        yield stack.enter_context(contextlib.closing(meter))


def load_fake(folder):
    """Compile the fake NVML and load it into this process and into all processes that it starts from now on."""
    library = f"{folder}/{LIBRARY}"
    command = ["gcc", "-O2", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-o", library, FAKE_SOURCE]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(f"there is no NVML, and the fake one cannot be compiled: {error}.") from error
    ctypes.CDLL(library)  # pynvml then finds it by its soname
    inherited = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = folder if inherited is None else f"{folder}:{inherited}"


def idle_cost(meter, seconds):
    """The sampler's cost (as in Trace) over `seconds` in which this program does nothing."""
    meter.start()
    time.sleep(seconds)
    trace = meter.stop()
    if trace.fault:
        raise DataError(f"the sampler gave nothing to measure: {trace.fault}.")
    return trace.sampler


WAKE = """
import sys, time
interval_s, seconds = map(float, sys.argv[1:])
start, cpu, due = time.perf_counter(), time.process_time(), time.perf_counter()
while time.perf_counter() - start < seconds:
    due += interval_s
    time.sleep(max(0.0, due - time.perf_counter()))
print((time.process_time() - cpu) / (time.perf_counter() - start))
"""


def waking_share(interval_ms, seconds):
    """Share of a core used by a process that wakes every `interval_ms` and does nothing else."""
    command = [sys.executable, "-c", WAKE, str(interval_ms / 1000), str(seconds)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def loop_seconds(loops, values):
    """Seconds of `loops` rounds of the fixed loop: single-threaded work on values that fit into the cache."""
    start = time.perf_counter()
    for _ in range(loops):
        np.sort(np.tanh(values))
    return time.perf_counter() - start


def loop_effect(meter, turns, turn_s):
    """[turns] logarithms of the loop's time with the sampler on over its time with the sampler off."""
    values = np.random.default_rng(0).standard_normal(4096)
    loop_seconds(100, values)
    loops = max(1, round(turn_s / (loop_seconds(100, values) / 100)))

    def turn(sampled):  # start and stop the meter either way: a scheduler favours processes that have just waited
        meter.start()
        if not sampled:
            meter.stop()
        seconds = loop_seconds(loops, values)
        if sampled:
            meter.stop()
        return np.log(seconds)

    effects = []
    for _ in progress(range(turns), description="loop", unit="turn"):
        off, on, on_again, off_again = turn(False), turn(True), turn(True), turn(False)
        effects.append((on + on_again - off - off_again) / 2)
    return np.array(effects)


def measure(interval_ms, seconds, turns, turn_s):
    """The content of the JSON file; `sentence` puts it into words."""
    with nvml_meter(interval_ms) as meter:
        sensor = meter.provenance()
        load = os.getloadavg()[0]
        cost, waking = idle_cost(meter, seconds), waking_share(interval_ms, seconds)
        effects = loop_effect(meter, turns, turn_s)
    effect, low, high = intervals.bootstrap_mean(effects)
    return {
        "sensor": "fake NVML" if sensor["fake"] else sensor["name"],
        "source": sensor["source"],
        "interval_ms": interval_ms,
        "cpu_share": cost["cpu_s"] / cost["wall_s"],
        "waking_cpu_share": waking,
        "jitter_p50_ms": cost["late_p50_ms"],
        "jitter_p99_ms": cost["late_p99_ms"],
        "seconds": cost["wall_s"],
        "loop_effect": float(np.expm1(effect)),
        "loop_effect_low": manifest.finite(np.expm1(low)),
        "loop_effect_high": manifest.finite(np.expm1(high)),
        "turns": turns,
        "turn_s": turn_s,
        "load_average": load,  # of the machine before the benchmark: load by other programs
        "n_cpus": cpus.count().machine,
        "provenance": provenance(("numpy", "nvidia-ml-py")),
    }


def sentence(found):
    """One sentence for the terminal, with the goals that were missed."""
    missed = []
    if found["cpu_share"] > GOAL_CPU_SHARE:
        missed.append(f"more than {GOAL_CPU_SHARE:.0%} of a core")
    if found["jitter_p99_ms"] > GOAL_P99_MS:
        missed.append(f"later than {GOAL_P99_MS:g} ms")
    if found["loop_effect_low"] is not None and not found["loop_effect_low"] <= 0 <= found["loop_effect_high"]:
        missed.append("a loop whose time it changes")
    low, high = ("?" if found[key] is None else f"{found[key]:+.2%}" for key in ("loop_effect_low", "loop_effect_high"))
    return (
        f"Reading {found['sensor']} every {found['interval_ms']:g} ms takes {found['cpu_share']:.2%} of a core "
        f"({found['waking_cpu_share']:.2%} for waking alone), "
        f"{found['jitter_p50_ms']:.2f} ms late (median; 99 in 100 within {found['jitter_p99_ms']:.2f} ms), and changes "
        f"the time of a single-thread loop by {found['loop_effect']:+.2%} [{low}, {high}]"
        f" at a load of {found['load_average']:.1f} on {found['n_cpus']} CPUs"
        + (f". Not within the goals: {', '.join(missed)}." if missed else ": within the goals.")
    )


QUICK = {
    **{"seconds": 1, "turns": 2, "turn_s": 0.02, "methods": ["rtn-w8a8"], "comparisons": 1, "processes": 2},
    **{"steps": 1, "comparison_steps": 1, "limit_s": 1, "comparison_s": 0.5},
}


def main(argv=None):
    args = parse_arguments(argv)
    found = measure(args.interval_ms, args.seconds, args.turns, args.turn_s) | {"methods": [], "comparisons": []}
    manifest.write_json(args.output, found)
    print(sentence(found), flush=True)
    if args.methods == [] and not args.comparisons:
        return
    from benchmarks import measured_cells
    from quantwatt.measuring import instruments

    instruments.set_threads(args.threads)

    def keep(part, row):  # at once, so that an interrupted run leaves what it has measured
        found[part].append(row)
        manifest.write_json(args.output, found)

    measured_cells.table(args, keep)
    measured_cells.draw(found["methods"], found["comparisons"], args.output)
    for line in measured_cells.sentences(found["methods"], found["comparisons"]):
        print(line)


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a little of everything, to see that it works")
    parser.add_argument("--interval-ms", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=20, help="seconds in which only the sampler runs")
    parser.add_argument("--turns", type=int, default=40, help="turns of the loop, each off, on, on, off")
    parser.add_argument("--turn-s", type=float, default=0.25, help="seconds of the loop, each time it runs")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of the cells")
    parser.add_argument("--threads", type=int, help="CPU threads of torch (default: all)")
    parser.add_argument(
        "--methods", nargs="*", help="of the embedded experiment (default: all that need no calibration)"
    )
    parser.add_argument(
        "--comparisons",
        type=int,
        default=40,
        help="of the baseline with itself, alone and as many beside another program",
    )
    parser.add_argument("--steps", type=int, help="denoising steps (default: the experiment's)")
    parser.add_argument("--comparison-steps", type=int, default=4, help="denoising steps of a comparison")
    parser.add_argument("--limit-s", type=float, help="seconds of a method's blocks (default: the experiment's)")
    parser.add_argument("--processes", type=int, help="most processes of a cell (default: the experiment's)")
    parser.add_argument("--comparison-s", type=float, default=3, help="seconds of a comparison's blocks")
    parser.add_argument("--cell-s", type=float, default=90, help="seconds after which a cell is given up")
    parser.add_argument("--minutes", type=float, default=30, help="after which no other cell begins")
    parser.add_argument(
        "--output", default="results/benchmarks/measure.json", help="JSON; a figure is written next to it"
    )
    args = parser.parse_args(argv)
    if args.quick:
        vars(args).update(QUICK)
    return args


if __name__ == "__main__":
    from quantwatt.jobs import command

    command.run(main)
