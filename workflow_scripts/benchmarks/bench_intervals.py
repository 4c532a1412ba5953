"""Compare estimators of a ratio of two configurations: how many of their 95 % intervals hold it, how wide they are.

The pairs come from the code of a measurement on a simulated machine: with drift, with bursts of other programs, and
with processes that differ by 0, 2 and 5 % in their ratios. All estimators see the same pairs.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where quantwatt is

import numpy as np
from scipy.special import ndtri, stdtrit

from benchmarks import harness, simulated_machine
from benchmarks.simulated_machine import BETWEEN, NOISES, RATIO, Machine
from quantwatt import intervals
from quantwatt.jobs.progress import progress
from quantwatt.measuring import pairs

WHITE = 0.05  # standard deviation of a block's white noise, on the logarithmic scale
PROCESSES = (2, 4, 8)
PRECISION = 0.05
DRAWN = 8  # the number of processes that the figure shows
USED, STOPPED = "t of processes' Hodges-Lehmann", "the same, stopped at ±5%"
TOLERANCE = 0.02
TAIL = (1 + intervals.LEVEL) / 2

Logs = Sequence[np.ndarray]  # logarithms of the pairs' ratios, of each process
Bounds = tuple[float, float]


def pooled_t(logs: Logs, seed: int) -> Bounds:
    """Student's t over all pairs."""
    return intervals.student_mean(np.concatenate(logs))[1:]


def signed_ranks(logs: Logs, seed: int) -> Bounds:
    """Hodges and Lehmann's interval by Wilcoxon's signed ranks, in normal approximation, over all pairs."""
    values = np.concatenate(logs)
    n = len(values)
    first, second = np.triu_indices(n)
    means = np.sort((values[first] + values[second]) / 2)
    cut = max(1, math.floor(len(means) / 2 - ndtri(TAIL) * math.sqrt(n * (n + 1) * (2 * n + 1) / 24)))
    return means[cut - 1], means[-cut]


def bootstrap_of_medians(logs: Logs, seed: int, resamples: int = 400) -> Bounds:
    """Percentiles of the medians of resampled pairs."""
    values = np.concatenate(logs)
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return tuple(np.percentile(np.median(values[draws], axis=1), [100 * (1 - TAIL), 100 * TAIL]))


def mixed_model(logs: Logs, seed: int) -> Bounds:
    """A random effect of the process, by REML, which for equal numbers of pairs is the analysis of variance.

    Where the effect is estimated as zero, its degrees of freedom count as those of the pairs (Satterthwaite).
    """
    k, n = len(logs), min(map(len, logs))
    table = np.array([values[:n] for values in logs])  # [processes, pairs]
    between, within = n * table.mean(axis=1).var(ddof=1), table.var(axis=1, ddof=1).mean()
    if between > within:
        degrees, variance = k - 1, between
    else:
        degrees = k * n - 1
        variance = ((k - 1) * between + k * (n - 1) * within) / degrees
    half = stdtrit(degrees, TAIL) * math.sqrt(variance / (k * n))
    return table.mean() - half, table.mean() + half


def t_of_means(logs: Logs, seed: int) -> Bounds:
    """Student's t over the means of processes."""
    return intervals.student_mean([values.mean() for values in logs])[1:]


def used(logs: Logs, seed: int) -> Bounds:
    """Student's t over Hodges and Lehmann's estimates of processes: the estimator of measurements."""
    _, low, high = intervals.ratio_of_pairs(logs)
    return math.log(low), math.log(high)


ESTIMATORS: dict[str, Callable[[Logs, int], Bounds]] = {
    "t of all pairs": pooled_t,
    "signed ranks of all pairs": signed_ranks,
    "bootstrap of medians": bootstrap_of_medians,
    "mixed model": mixed_model,
    "t of processes' means": t_of_means,
    USED: used,
}


def compare(noise: str, between: float, processes: int, repetitions: int) -> Iterator[dict[str, Any]]:
    """Yield the row of each estimator in one scenario.

    Args:
        noise: key of NOISES; between: of BETWEEN.
    """
    settings = simulated_machine.settings_of({"processes": processes})
    found: dict[str, list[Bounds]] = {name: [] for name in ESTIMATORS}
    counts = []
    for seed in range(repetitions):
        logs = [pairs.log_ratios(placed) for placed in measured(noise, between, seed, settings)]
        counts.append(sum(map(len, logs)))
        for name, estimate in ESTIMATORS.items():
            found[name].append(estimate(logs, seed))
    scenario = {"noise": noise, "between": between, "processes": processes}
    for name, bounds in found.items():
        yield {**scenario, "estimator": name, "pairs": float(np.mean(counts)), **coverage(bounds)}


def stopped(noise: str, between: float, processes: int, repetitions: int) -> dict[str, Any]:
    """The row of measurements that end at PRECISION, with as many processes as that takes them."""
    settings = simulated_machine.settings_of({"processes": processes, "precision": PRECISION})
    bounds, counts, ends = [], [], []
    for seed in range(repetitions):
        placed = measured(noise, between, seed, settings)
        _, low, high = pairs.ratio(placed, level=settings.level)
        bounds.append((math.log(low), math.log(high)))
        counts.append(sum(len(pairs.log_ratios(process)) for process in placed))
        ends.append(len(placed))
    return {"noise": noise, "between": between, "processes": processes, "estimator": STOPPED,
            "pairs": float(np.mean(counts)), **coverage(bounds), "mean_processes": float(np.mean(ends))}  # fmt: skip


def measured(noise, between, seed, settings):
    rng = np.random.default_rng([seed, settings.processes, list(NOISES).index(noise), round(100 * between)])
    return simulated_machine.measure(Machine(NOISES[noise], WHITE, between, rng), settings)


def coverage(bounds: Sequence[Bounds]) -> dict[str, Any]:
    """{"repetitions", "coverage", "half_width": median, relative to the ratio, "mean_processes": None}."""
    low, high = np.array(bounds).T
    truth = math.log(RATIO)
    return {
        "repetitions": len(bounds),
        "coverage": float(np.mean((low <= truth) & (truth <= high))),
        "half_width": float(np.median(np.sinh((high - low) / 2))),
        "mean_processes": None,
    }


def table(processes: Sequence[int], repetitions: int) -> Iterator[dict[str, Any]]:
    scenarios = [(noise, between, count) for count in processes for between in BETWEEN for noise in NOISES]
    for scenario in progress(scenarios, description="scenarios", unit="scenario"):
        yield from compare(*scenario, repetitions)
        if scenario[-1] > intervals.FIRST_LOOK:
            yield stopped(*scenario, repetitions)


def sentences(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Each estimator's range of coverage, and its mean width where processes do not differ and where they do."""
    for processes in dict.fromkeys(row["processes"] for row in rows):
        for name in dict.fromkeys(row["estimator"] for row in rows if row["processes"] == processes):
            own = [row for row in rows if (row["estimator"], row["processes"]) == (name, processes)]
            parts = []
            for between in BETWEEN:
                shown = [row for row in own if row["between"] == between]
                covered = [row["coverage"] for row in shown]
                width = np.mean([row["half_width"] for row in shown])
                parts.append(f"{min(covered):.1%} to {max(covered):.1%}, ±{width:.1%} at {between:.0%}")
            yield f"{processes} processes, {name}: {'; '.join(parts)}."


def draw(rows: Sequence[dict[str, Any]], output: str) -> None:
    """Draw coverage above, half-widths below; one column for each difference between processes."""
    from quantwatt.report.figures import GREY, PALE, PALETTE

    rows = [row for row in rows if row["processes"] == DRAWN]
    names = list(dict.fromkeys(row["estimator"] for row in rows))[::-1]
    measures = {"coverage": "intervals that hold the ratio, %", "half_width": "median half-width, %"}
    with harness.figure(output, (9, 5.2)) as figure:
        axes = figure.subplots(2, len(BETWEEN), sharex="row", sharey=True, squeeze=False)
        for row_of_axes, (key, label) in zip(axes, measures.items(), strict=True):
            for axis, between in zip(row_of_axes, BETWEEN, strict=True):
                if key == "coverage":
                    middle = 100 * intervals.LEVEL
                    axis.axvspan(middle - 100 * TOLERANCE, middle + 100 * TOLERANCE, color=PALE, lw=0, zorder=0)
                for colour, noise in zip(PALETTE, NOISES, strict=False):
                    shown = [row for row in rows if (row["noise"], row["between"]) == (noise, between)]
                    places = [names.index(row["estimator"]) for row in shown]
                    axis.scatter([100 * row[key] for row in shown], places, s=16, color=colour, label=noise)
                axis.set_yticks(range(len(names)), names)
                axis.grid(axis="y", color=PALE, lw=0.5, zorder=0)
                axis.set_xlabel(label, color=GREY)
        for axis, between in zip(axes[0], BETWEEN, strict=True):
            axis.set_title(f"processes differ by {between:.0%}")
        for axis in axes[1]:
            axis.set_xlim(left=0)
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000, help="simulated measurements of each scenario")
    parser.add_argument("--processes", type=int, nargs="+", default=list(PROCESSES))
    parser.add_argument(
        "--output", default="results/benchmarks/intervals.json", help="rows as JSON; a figure is written next to it"
    )
    args = parser.parse_args(argv)
    rows = list(table(args.processes, args.repetitions))
    harness.write(args.output, rows, ("numpy", "scipy"))
    draw(rows, args.output)
    for line in sentences(rows):
        print(line)


if __name__ == "__main__":
    from quantwatt.jobs import command

    command.run(main)
