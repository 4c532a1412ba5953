"""How long the embedded model's cells take to measure, how wide their intervals are, and how many of them hold.

The intervals of the baseline against itself should hold 1 in 95 % of comparisons, also beside another program: one that
takes half of the cores half of the time, in spells of random length. Cells without it and beside it take turns.
"""

import argparse
import contextlib
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import measure as measure_rule
from benchmarks import bench_kernels, harness
from quantwatt.artifacts import manifest
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment
from quantwatt.inference import checkpoint
from quantwatt.jobs import machine
from quantwatt.measuring import cpus, pairs, summary
from quantwatt.measuring.processes import LOADING_S, Bar, Processes, Result
from quantwatt.measuring.settings import Measuring
from quantwatt.models import sampling as samplings

EXPERIMENT = "embedded"
SPELL_S = 0.3  # mean seconds for which the other program computes, and for which it waits
GOALS = {False: 0.05, True: 0.15}  # {beside another program: half-width of a method's time ratio}
GOAL_S = 40
FIELDS = ("ratio", "low", "high", "half_width")
PREFIXES = {"": "latency_s", "energy_": "energy_j"}  # {of a row's FIELDS: key of summary.ratios}
FORK_S = 1.2  # estimated seconds of a fork that loads both sides

DISTURB = """
import os, random, sys, time
parent, spell_s, seed = os.getppid(), float(sys.argv[1]), int(sys.argv[2])
random.seed(seed)
while os.getppid() == parent:
    until = time.perf_counter() + random.expovariate(1 / spell_s)
    while time.perf_counter() < until:
        pass
    time.sleep(random.expovariate(1 / spell_s))
"""


class TooLong(Exception):
    """A cell took longer than its limit."""


class TimedProcesses(Processes):
    """Measures the memory of each checkpoint once, because it has no part in a ratio, and ends what takes too long.

    Where threads of a process wait for each other in busy loops and another program holds a core, each wait takes a
    time slice of the scheduler: a run then takes 10 to 100 times as long, and a cell could take hours.
    """

    def __init__(self, folder: str | Path, bar: Bar, peaks: dict[str, Result], limit_s: float):
        """`peaks`: memory that was measured before, which is added to; `limit_s`: of all forks since `begin`."""
        super().__init__(folder, bar)
        self.peaks, self.limit_s, self.spent_s = peaks, limit_s, 0.0

    def begin(self) -> None:
        """Begin another cell."""
        self.spent_s = 0.0

    def fresh(self, task: Mapping[str, Any]) -> Result:
        name = str(task["checkpoints"])
        if name not in self.peaks:
            self.peaks[name] = super().fresh(task)
        return self.peaks[name]

    def forked(self, task: Mapping[str, Any]) -> Result:
        """As of Processes.

        Raises:
            TooLong: the limit has passed; the processes are ended.
        """
        start, over, result = time.perf_counter(), threading.Event(), {}

        def end():
            over.set()
            if self.server:
                self.server.terminate()

        timer = threading.Timer(self.limit_s - self.spent_s, end)
        timer.start()
        try:
            result = super().forked(task)
        except DataError:
            if not over.is_set():
                raise
        finally:
            timer.cancel()
            timer.join()
            self.spent_s += time.perf_counter() - start
        if over.is_set():
            if self.server:
                self.server.wait()
                self.server = None
            raise TooLong
        return result


@contextlib.contextmanager
def other_program(wanted: bool, spell_s: float = SPELL_S) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Take half of the machine's cores half of the time meanwhile, if `wanted`."""
    count = max(1, round(cpus.count().machine / 2)) if wanted else 0
    others = [subprocess.Popen([sys.executable, "-c", DISTURB, str(spell_s), str(seed)]) for seed in range(count)]
    try:
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()


def cell(
    run: TimedProcesses,
    paths: Sequence[Path],
    args: argparse.Namespace,
    steps: int | None,
    settings: Measuring,
    beside: bool,
) -> dict[str, Any]:
    """The row of one cell: "seconds" with loading, intervals of time and energy, or the "reason" why there are none.

    Args:
        run: starts its processes; paths: manifests of the method's and the baseline's checkpoint; beside: whether
            another program runs.
        args: device and threads; steps: of the model, None: the experiment's.
    """
    row: dict[str, Any] = {
        **{"beside_another": beside, "seconds": None, "processes": None, "pairs": None, "disturbed_pairs": None},
        **{f"{prefix}{name}": None for prefix in PREFIXES for name in FIELDS},
        **{"known": None, "reason": None},
    }
    asked = argparse.Namespace(
        checkpoint=paths[0], baseline=paths[1], sampling=sampling_of(steps), measuring=settings, device=args.device,
        threads=args.threads, not_measured=None,
    )  # fmt: skip
    run.begin()
    with other_program(beside):
        try:
            _, rounds, fields = measure_rule.measure_rounds(asked, run)
        except TooLong:
            rounds, fields = [], {"reason": f"it took more than {run.limit_s:g} s"}
    row["seconds"] = run.spent_s
    if not rounds or "ratio_reason" in fields:
        return row | {"reason": fields.get("reason") or fields["ratio_reason"]}
    return row | found_in(rounds, settings)


def found_in(rounds: Sequence[Result], settings: Measuring) -> dict[str, Any]:
    """A row's columns of what was measured."""
    processes = [summary.placed_in(result) for result in rounds]
    counts = [pairs.counts(placed) for placed in processes]
    row: dict[str, Any] = {
        "processes": len(rounds),
        "pairs": sum(count["n"] for count in counts),
        "disturbed_pairs": sum(count["disturbed"] for count in counts),
        "known": summary.is_known(rounds, settings),
    }
    ratios = summary.ratios(processes, settings.level)
    for prefix, key in PREFIXES.items():
        if ratios[key]:
            row |= {
                f"{prefix}{name}": value
                for name, value in zip(FIELDS, (*ratios[key], pairs.half_width(ratios[key])), strict=True)
            }
    return row


def table(args: argparse.Namespace, keep: Callable[[str, dict[str, Any]], object]) -> None:
    """Measure the methods, then the baseline against itself; `keep("methods" or "comparisons", row)` each.

    Args:
        args: of bench_measure.py.
    """
    baseline, methods = methods_of(args.methods)
    end = time.monotonic() + 60 * args.minutes
    whole = measuring_of(args.device, limit_s=args.limit_s, processes=args.processes)
    short = dataclasses.replace(whole, limit_s=args.comparison_s, idle_s=0, warmup_s=0.2, phases_s=0)
    with tempfile.TemporaryDirectory() as folder:
        paths = bench_kernels.checkpoints(methods, Path(folder), args.device)
        computed = [name for name in methods if checkpoint.compute_of(paths[name], args.device)[0] == "real"]
        computed = [name for name in computed if name != baseline]
        print(f"This takes about {minutes(args, whole, short, len(computed)):.0f} min.", flush=True)
        peaks: dict[str, Result] = {}
        for name in computed:
            for beside in (False, True):
                with Bar(name, whole) as bar, TimedProcesses(folder, bar, peaks, args.cell_s) as run:
                    if time.monotonic() < end:
                        row = cell(run, (paths[name], paths[baseline]), args, args.steps, whole, beside)
                        keep("methods", {"method": name, **row})
        with Bar(f"{baseline} against itself", short) as bar, TimedProcesses(folder, bar, peaks, args.cell_s) as run:
            for number in range(2 * args.comparisons):
                if time.monotonic() < end:
                    row = cell(run, (paths[baseline],) * 2, args, args.comparison_steps, short, bool(number % 2))
                    keep("comparisons", row)


def minutes(args: argparse.Namespace, whole: Measuring, short: Measuring, n_methods: int) -> float:
    """The time that `table` should take, half of the cells with as many processes and blocks as they may have."""
    seconds = 0.0
    for count, settings, loading_s in ((n_methods, whole, LOADING_S), (args.comparisons, short, 0)):
        each_s, start_s = FORK_S + settings.warmup_s, loading_s + 2 * settings.idle_s + settings.phases_s
        for processes, limit_s in (
            (settings.least_processes, settings.limit_s / 2),
            (settings.processes, settings.limit_s),
        ):
            seconds += count * min(args.cell_s, start_s + processes * each_s + limit_s)
    return max(1, min(args.minutes, seconds / 60))


def methods_of(wanted: Sequence[str] | None) -> tuple[str, dict[str, Any]]:
    """(name of the baseline, {name: method}, the baseline first) of the embedded experiment's methods.

    Left out are those of solvers that read recorded inputs: their formats are those of rounding to nearest.
    """
    loaded = experiment.load_experiment(EXPERIMENT)
    baseline, found = loaded["baseline"], loaded["methods"]
    rounded = [name for name, method in found.items() if not method["solver"] or method["solver"]["name"] == "rtn"]
    names = [name for name in rounded if name != baseline and (wanted is None or name in wanted)]
    return baseline, {name: found[name] for name in [baseline, *names]}


def sampling_of(steps: int | None) -> samplings.Sampling | samplings.TextSampling:
    """The embedded experiment's sampling, in fewer steps if `steps` says so."""
    (sampling,) = experiment.load_experiment(EXPERIMENT)["samplings"].values()
    prompts = str(manifest.PROJECT / sampling["prompts"])
    return samplings.of(sampling | {"prompts": prompts} | ({"steps": steps} if steps else {}))


def measuring_of(device: str, **changes: Any) -> Measuring:
    """The embedded experiment's protocol, with changes that are not None."""
    config = experiment.load_config({})
    measuring = config["measuring"] | experiment.load_experiment(EXPERIMENT)["measuring"]
    meter = machine.resolve_meter(config["meter"], device)
    given = {key: value for key, value in changes.items() if value is not None}
    return Measuring.from_settings(measuring | {"meter": meter} | given)


def sentences(methods: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What a terminal shows: the goals of methods, and how many comparisons hold 1."""
    for beside, where in ((False, "alone"), (True, "beside another program")):
        known = [row for row in methods if row["beside_another"] == beside and row["ratio"]]
        if known:
            narrow = [row for row in known if row["half_width"] <= GOALS[beside]]
            quick = max(row["seconds"] for row in known)
            yield (
                f"{len(narrow)} of {len(known)} methods {where} have a half-width of at most {GOALS[beside]:.0%}, "
                f"each within {quick:.0f} s (goal: {GOAL_S} s)."
            )
        tried = [row for row in comparisons if row["beside_another"] == beside]
        done = [row for row in tried if row["ratio"]]
        if tried:
            wide = f" (median ±{statistics.median(row['half_width'] for row in done):.1%})" if done else ""
            yield (
                f"{sum(map(holds, done))} of {len(done)} intervals of the baseline over itself {where} hold 1{wide}; "
                f"{len(tried) - len(done)} given up."
            )


def holds(row: Mapping[str, Any]) -> bool:
    return row["low"] <= 1 <= row["high"]


def draw(methods: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]], output: str) -> None:
    """Draw the methods' half-widths by their seconds, and the intervals of the baseline against itself."""
    from quantwatt.report.figures import GREY, PALE, PALETTE

    with harness.figure(output, (9, 3.6)) as figure:
        left, *right = figure.subplots(1, 3, width_ratios=[2, 1, 1])
        for beside, colour in ((False, PALETTE[0]), (True, PALETTE[1])):
            where = "beside another program" if beside else "alone"
            shown = [row for row in methods if row["beside_another"] == beside and row["ratio"]]
            widths = [100 * row["half_width"] for row in shown]
            left.scatter([row["seconds"] for row in shown], widths, s=22, color=colour, label=where)
            left.axhline(100 * GOALS[beside], color=colour, lw=0.8, ls="--", zorder=0)
            done = sorted(
                (row for row in comparisons if row["beside_another"] == beside and row["ratio"]),
                key=lambda row: row["ratio"],
            )
            axis = right[beside]
            for place, row in enumerate(done):
                axis.plot([row["low"], row["high"]], [place, place], color=colour if holds(row) else PALETTE[5], lw=1.6)
                axis.plot([row["ratio"]], [place], ".", color=colour if holds(row) else PALETTE[5], ms=3)
            axis.axvline(1, color=GREY, lw=0.8, zorder=0)
            axis.set_yticks([])
            axis.spines["left"].set_visible(False)
            axis.set_title(f"{sum(map(holds, done))} of {len(done)} hold 1,\n{where}")
            axis.set_xlabel("baseline over itself, time", color=GREY)
        left.axvline(GOAL_S, color=PALE, lw=1, zorder=0)
        left.set_xlim(left=0)
        left.set_ylim(bottom=0)
        left.set_title("Methods of the embedded model")
        left.set_xlabel("seconds, loading included", color=GREY)
        left.set_ylabel("half-width of the time ratio, %", color=GREY)
        left.legend(frameon=False)
