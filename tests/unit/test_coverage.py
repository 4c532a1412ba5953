"""Intervals hold the true ratio in 95 % of measurements: of the code that measures, on a simulated machine."""

import math

import numpy as np
import pytest
from scipy.special import stdtrit

from benchmarks import bench_intervals, simulated_machine
from benchmarks.simulated_machine import BETWEEN, NOISES, RATIO, Machine, Noise
from quantwatt import intervals
from quantwatt.measuring import pairs

TOLERANCE = 0.02
ENDS = pytest.mark.parametrize("precision", [0, 0.05], ids=["all processes", "ends at 5 %"])
DIFFERS = pytest.mark.parametrize("between", BETWEEN)


def measured(noise, white, between, repetitions, **changes):
    """([whether the interval holds the ratio], [number of processes]) of simulated measurements."""
    settings = simulated_machine.settings_of(changes)
    holds, ends = [], []
    for seed in range(repetitions):
        rng = np.random.default_rng([seed, round(1000 * white), round(1000 * between)])
        processes = simulated_machine.measure(Machine(noise, white, between, rng), settings)
        _, low, high = pairs.ratio(processes, level=settings.level)
        holds.append(low <= RATIO <= high)
        ends.append(len(processes))
    return holds, ends


def check(holds, least=intervals.LEVEL - TOLERANCE, most=intervals.LEVEL + TOLERANCE):
    """The share is within the bounds, but for three standard errors of so many repetitions."""
    share, error = np.mean(holds), 3 * math.sqrt(intervals.LEVEL * (1 - intervals.LEVEL) / len(holds))
    assert least - error <= share <= most + error, f"{share:.1%} of {len(holds)}"


@ENDS
@DIFFERS
def test_intervals_cover_in_the_mean_of_all_noises(precision, between):
    found = [measured(noise, 0.05, between, 90, precision=precision)[0] for noise in NOISES.values()]
    check(np.concatenate(found))


@pytest.mark.slow
@ENDS
@DIFFERS
@pytest.mark.parametrize("white", [0.02, 0.1])
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_intervals_cover_under_every_noise(noise, white, between, precision):
    """Bursts that nobody sees give a few processes values far from the others', for which Student's t is too wide."""
    holds, _ = measured(noise, white, between, 2000, precision=precision)
    unseen = noise.starts and not noise.seen
    check(holds, most=0.985 if unseen else intervals.LEVEL + TOLERANCE)


def test_measuring_ends_after_any_number_of_processes_and_covers():
    holds, ends = zip(
        *(measured(Noise(), 0.02, between, 80, precision=0.05) for between in (0, 0.03, 0.045, 0.06)), strict=True
    )
    assert set(np.concatenate(ends)) == set(range(intervals.FIRST_LOOK, 9))
    check(np.concatenate(holds))


@pytest.mark.parametrize("last", [2, 3, 5, 8, 12, 16])
def test_the_level_of_looks_holds_for_any_largest_number_of_processes(last):
    """Looks at estimates of processes alone; the worst spread is one at which the last looks are narrow enough."""
    level, first = intervals.looks_level(last), min(last, intervals.FIRST_LOOK)
    rng, precision, repetitions = np.random.default_rng(last), 0.05, 20_000
    for spread in precision * np.array([0.3, 0.6, 0.9, 1.2, 1.5, 2.5]):
        means = rng.normal(0, spread, (repetitions, last))
        open_, holds = np.ones(repetitions, bool), np.zeros(repetitions, bool)
        for look in range(first, last + 1):
            half = stdtrit(look - 1, (1 + level) / 2) * means[:, :look].std(axis=1, ddof=1) / math.sqrt(look)
            ends = open_ & ((half <= precision) | (look == last))
            holds[ends] = (abs(means[:, :look].mean(axis=1)) <= half)[ends]
            open_ &= ~ends
        check(holds)


@pytest.mark.parametrize("least", [2, 3, 4, 5])
def test_a_steady_drift_cancels_in_each_process(least):
    """However many pairs were asked for: after an odd number it would shift all processes alike."""
    drifting, quiet = (
        measured(Noise(drift=drift), 0.01, 0, 300, blocks=4 * least, limit_s=1)[0] for drift in (0.01, 0.0)
    )
    check(drifting)
    check(quiet)


def test_intervals_are_as_wide_as_what_differs_between_processes():
    """A t test, signed ranks or a bootstrap of all pairs take pairs of one process for independent of each other."""
    rows = {row["estimator"]: row for row in bench_intervals.compare("white noise", 0.05, 8, 300)}
    assert rows[bench_intervals.USED]["coverage"] > 0.9
    for name in ("t of all pairs", "signed ranks of all pairs", "bootstrap of medians"):
        assert rows[name]["coverage"] < 0.9


def test_bursts_hardly_widen_the_intervals():
    rows = {row["estimator"]: row for row in bench_intervals.compare("bursts, not seen", 0.0, 8, 100)}
    assert rows[bench_intervals.USED]["half_width"] < 0.8 * rows["t of processes' means"]["half_width"]


def test_the_comparison_is_written_and_drawn(tmp_path, capsys):
    output = tmp_path / "intervals.json"
    bench_intervals.main(["--repetitions", "4", "--processes", "2", "8", "--output", str(output)])
    assert output.exists() and output.with_suffix(".png").stat().st_size > 10_000
    assert f"8 processes, {bench_intervals.STOPPED}: " in capsys.readouterr().out
