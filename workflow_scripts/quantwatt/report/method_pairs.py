"""Compare every two methods of an experiment, without the baseline, which the summary compares every method with.

Quality: the difference of a metric that is a mean over images or items, from the values of each in the score's file.
Both methods have the same prompts and seeds, so that images are drawn in pairs: what is hard for both cancels. The
bootstrap is `intervals.bootstrap_mean`'s, of all pairs at once. FID and KID are no means; tools/compare.py computes
them from features.

Cost: each method was measured in turns with the baseline in processes of its own. The ratio of two methods is that of
their ratios to the baseline, whose errors are independent: see `quantwatt.report.independent`.

The verdict is on the first method, by its own interval. Of 20 pairs that are alike, one is told apart by chance.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from quantwatt.config.metric_entries import Metric
from quantwatt.intervals import COUNTS, LEVEL, RESAMPLES
from quantwatt.report import independent, tables
from quantwatt.report.cells import Cell
from quantwatt.report.tables import BETTER, EQUAL, UNDECIDED, WORSE

CONTROL_OF_TWO = math.sqrt(2)  # a ratio of two ratios strays so much farther than one, on the logarithmic scale
DRAWN, LEAST_RESAMPLES = 2 * 10**7, 1000  # images drawn for all resamples: a few seconds for each sampling
MOST_METHODS = 200  # of one model and sampling: 20,000 pairs
PAIRS_AT_ONCE = 64  # of which resampled differences are in memory
OTHER_DEVICE = "they were measured on different devices"
NO_RATIO = "{} has no ratio to the baseline"


def columns(metrics: Iterable[Metric]) -> list[str]:
    """The columns of `pairs_table` of cells that were scored by these metrics."""
    figures = [f"{metric.column}_difference" for metric in metrics]
    ratios = [f"{name}_ratio" for name, _ in tables.COSTS.values()]
    return [
        *"model sampling device device_id method other n_images".split(),
        *(
            name
            for figure in figures + ratios
            for name in (figure, f"{figure}_low", f"{figure}_high", _verdict(figure))
        ),
        "cost_reason",
        "margin",
    ]


def _verdict(figure):
    return f"{figure.removesuffix('_difference').removesuffix('_ratio')}_verdict"


def pairs_table(cells: Sequence[Cell], baseline: str, margin: float = tables.MARGIN) -> pd.DataFrame:
    """One row for every model, sampling and unordered pair of methods of which a figure can be compared.

    Of more methods than MOST_METHODS there are no rows: `left_out` says so.

    Args:
        cells: as of `cells.read_cells`, with the values of images; baseline: name of the unquantized method.
        margin: largest difference from 1 of a ratio that is called EQUAL.
    Returns:
        columns of `columns`. Differences are `method` minus `other`, ratios `method` over `other`; device is empty
        where the two were measured on different ones.
    """
    few = (group for group in _groups(cells) if len(group) <= MOST_METHODS)
    rows = [row for group in few for row in _group(group, baseline, margin)]
    scored = {name for cell in cells for name in cell.scores}
    return pd.DataFrame(rows, columns=columns(metric for name, metric in tables.METRICS.items() if name in scored))


def left_out(cells: Sequence[Cell]) -> list[str]:
    """Sentences on what the table leaves out, because it would have millions of rows."""
    return [
        f"tables/pairs.csv: {group[0].model}, {group[0].sampling}: {len(group):,} methods are too many for a table of "
        f"all pairs (at most {MOST_METHODS}); tools/compare.py compares any two."
        for group in _groups(cells)
        if len(group) > MOST_METHODS
    ]  # fmt: skip


def _groups(cells):
    """The cells of each model and sampling."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.sampling), []).append(cell)
    return groups.values()


def _group(cells, baseline, margin):
    reference = next((cell for cell in cells if cell.method == baseline), None)
    methods = [cell for cell in cells if cell.method != baseline]
    quality, costs = differences(methods), ratios(methods, reference, margin)
    for pair in itertools.combinations(range(len(methods)), 2):
        if found := {**quality.get(pair, {}), **costs.get(pair, {})}:
            one, other = (methods[i] for i in pair)
            devices = {tables.device_key(cell.measurement) for cell in (one, other)}
            name, uuid = devices.pop() if len(devices) == 1 else (None, None)
            n_images = one.images.get("n_images", one.images.get("n_items"))
            yield {"model": one.model, "sampling": one.sampling, "device": name, "device_id": uuid,
                   "method": one.method, "other": other.method, "n_images": n_images, "margin": margin, **found,
                   "cost_reason": why_no_ratio(one, other, found)}  # fmt: skip


def differences(cells: Sequence[Cell], resamples: int | None = None, seed: int = 0) -> dict[tuple[int, int], dict]:
    """{(i, j): {column: value, bounds and verdict}} of all metrics with values of single images.

    Args:
        cells: of one model and sampling; i < j are positions in it.
        resamples: of the bootstrap; None: as many as are `enough`.
    """
    found: dict[tuple[int, int], dict[str, Any]] = {}
    alike: dict[tuple, list] = {}  # metrics of the same items are resampled together
    for part in _scored(cells):
        alike.setdefault((len(part[3]), part[0]), []).append(part)
    for (n, weights), parts in alike.items():
        values = np.concatenate([values for *_, values in parts], axis=1)  # [n, methods of all metrics]
        shares = np.frombuffer(weights) if weights else np.ones(n)
        means, drawn = resampled_means(values, shares, enough(n) if resamples is None else resamples, seed)
        first = 0
        for _, (metric, logs), places, own in parts:
            part = slice(first, first := first + own.shape[1])
            for pair, interval in _pairs(_levels(means[part], drawn[:, part], logs), places):
                column = f"{metric.column}_difference"
                told = {**tables._interval(column, *interval), _verdict(column): judged(interval, metric)}
                found.setdefault(pair, {}).update(told)
    return found


def difference_of(values: np.ndarray, weights: np.ndarray, logs: bool, seed: int = 0) -> tables.Interval:
    """(difference of the first column's score from the second's, low, high), in pairs of rows.

    Args:
        values: [n, 2] of single images or items; weights: [n]; logs: whether values are logarithms.
    """
    [(_, interval)] = _pairs(_levels(*resampled_means(values, weights, enough(len(values)), seed), logs), [0, 1])
    return interval


def enough(n: int) -> int:
    """Number of resamples of n images: RESAMPLES, and fewer where that would draw more than DRAWN images."""
    return min(RESAMPLES, max(LEAST_RESAMPLES, DRAWN // n))


def _levels(means, drawn, logs):
    """[1 + resamples, k] scores of the sample, and of its resamples."""
    levels = np.vstack([means[None], drawn])
    with np.errstate(over="ignore"):  # a broken model's perplexity may be infinite
        return np.exp(levels) if logs else levels


def _scored(cells) -> Iterator[tuple[bytes, tuple[Metric, bool], list[int], np.ndarray]]:
    """(weights, (Metric, whether values are logarithms), positions of cells, values [n, cells]) of each metric."""
    for name in dict.fromkeys(name for cell in cells for name in cell.scores):
        sets: dict[tuple, list[int]] = {}
        for i, cell in enumerate(cells):
            score = cell.scores.get(name, {})
            if score.get("values") is not None and score.get("value") is not None:
                weights = score.get("weights")
                alike = (len(score["values"]), b"" if weights is None else np.asarray(weights, float).tobytes())
                sets.setdefault((*alike, bool(score.get("log_values"))), []).append(i)
        for (_, weights, logs), places in sets.items():
            values = np.stack([np.asarray(cells[i].scores[name]["values"], float) for i in places], axis=1)
            yield weights, (tables.metric_of(name), logs), places, values


def resampled_means(
    values: np.ndarray, weights: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means of columns, and those of resamples, the same resample of the rows for all columns.

    Args:
        values: [n, k]; weights: [n].
    Returns:
        ([k], [resamples, k]); the second has no rows for a single value, which has no interval.
    """
    n, table = len(values), np.column_stack([values * weights[:, None], weights])
    means = table.sum(0)[:-1] / table.sum(0)[-1]
    if n < 2:
        return means, np.empty((0, len(means)))
    rng, at_once = np.random.default_rng(seed), max(1, COUNTS // n)
    sizes = [min(at_once, resamples - first) for first in range(0, resamples, at_once)]
    # In floats, because numpy's product of whole numbers takes ten times as long.
    drawn = (rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64) for size in sizes)
    sums = np.concatenate([counts @ table for counts in drawn])
    return means, sums[:, :-1] / sums[:, -1:]


def _pairs(levels, places):
    """((i, j), (difference, low, high)) of all pairs of columns of [1 + resamples, k], the first row the sample's."""
    tail = 100 * (1 - LEVEL) / 2
    pairs = list(itertools.combinations(range(len(places)), 2))
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        some = pairs[start : start + PAIRS_AT_ONCE]
        bounds = np.full((2, len(some)), np.nan)
        with np.errstate(invalid="ignore"):
            apart = levels[:, [i for i, _ in some]] - levels[:, [j for _, j in some]]
            if len(apart) > 1:
                bounds = np.percentile(apart[1:], [tail, 100 - tail], axis=0)
        for place, (i, j) in enumerate(some):
            found = float(apart[0, place]), *map(float, bounds[:, place])
            yield (places[i], places[j]), found if all(map(math.isfinite, found)) else (found[0], math.nan, math.nan)


def judged(interval: tables.Interval, metric: Metric, margin: float | None = None) -> str | None:
    """Verdict on a difference of a metric; None without an interval.

    EQUAL if it lies within the margin, of a metric with a value of the baseline what is acceptable (x-shown), else 0:
    then only equal images are equal. BETTER or WORSE if it excludes 0, else UNDECIDED.
    """
    _, low, high = interval
    if math.isnan(low):
        return None
    if margin is None:
        margin = 0.0 if metric.paired else metric.acceptable or 0.0
    if -margin <= low and high <= margin:
        return EQUAL
    if low <= 0 <= high:
        return UNDECIDED
    return BETTER if (low > 0) == metric.higher_is_better else WORSE


def ratios(cells: Sequence[Cell], reference: Cell | None, margin: float) -> dict[tuple[int, int], dict[str, Any]]:
    """{(i, j): {column: ratio, bounds and verdict}} of time and energy, of methods measured on the same device.

    Args:
        cells: of one model and sampling, without the baseline; reference: the baseline's, for the A/A control.
    """
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for key, (name, _) in tables.COSTS.items():
        known = [(i, ratio) for i, cell in enumerate(cells) if (ratio := ratio_of(cell.measurement, key))]
        pairs = [
            (one, other) for one, other in itertools.combinations(known, 2)
            if tables.device_key(cells[one[0]].measurement) == tables.device_key(cells[other[0]].measurement)
        ]  # fmt: skip
        if not pairs:
            continue
        sides = (np.array([pair[side][1] for pair in pairs]).T for side in (0, 1))  # [4, pairs] each
        (*first, degrees), (*second, others) = sides
        control = control_of_two(reference, key)
        for (one, other), *interval in zip(pairs, *independent.ratio(first, second, degrees, others), strict=True):
            ratio = tuple(map(float, interval))
            verdict = tables.judge(*ratio, control, margin)
            shown = (math.nan,) * 3 if verdict == tables.TOO_NOISY else ratio
            told = {**tables._interval(f"{name}_ratio", *shown), f"{name}_verdict": verdict}
            found.setdefault((one[0], other[0]), {}).update(told)
    return found


def ratio_of(measurement: Mapping[str, Any], key: str) -> tuple[float, float, float, float] | None:
    """(ratio to the baseline, low, high, degrees of freedom); None without a ratio or its interval."""
    ratio = (measurement.get("ratio") or {}).get(key)
    if not ratio or any(ratio.get(part) is None for part in ("value", "low", "high")) or ratio["low"] <= 0:
        return None
    counted = measurement.get("pairs") or {}
    degrees = independent.degrees_of(measurement.get("n_processes"), counted.get("n"), counted.get("disturbed"))
    return (*tables.triple(ratio), degrees)


def control_of_two(reference: Cell | None, key: str) -> tables.Interval | None:
    """The A/A control of a ratio of two ratios: the baseline's, CONTROL_OF_TWO times as far from 1."""
    control = tables.control_of(reference.measurement, key) if reference else None
    if control is None or control[1] <= 0:
        return None
    value, low, high = (math.exp(CONTROL_OF_TWO * math.log(bound)) for bound in control)
    return value, low, high


def why_no_ratio(one: Cell, other: Cell, found: Mapping[str, Any]) -> str | None:
    """Why time or energy has no ratio; None where both have one."""
    for key, (name, _) in tables.COSTS.items():
        if f"{name}_verdict" not in found:
            for measured in (one.measurement, other.measurement):
                if ratio_of(measured, key) is None:
                    reasons = (measured.get(reason) for reason in ("reason", "energy_reason", "ratio_reason"))
                    return next((reason for reason in reasons if reason), NO_RATIO.format(measured.get("method", "it")))
            return OTHER_DEVICE
    return None
