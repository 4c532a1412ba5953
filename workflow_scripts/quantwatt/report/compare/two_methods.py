"""Compare two methods of one result: every metric in pairs of prompts and seeds, cost by independent ratios.

What tables/pairs.csv has of them, and FID and KID from the features on disk, with the metrics' own `change`, as a score
compares a method with the baseline.
"""

import math
from collections.abc import Iterator
from typing import Any

from quantwatt import registry
from quantwatt.artifacts import feature_files, layout
from quantwatt.artifacts.errors import DataError
from quantwatt.config import metric_entries
from quantwatt.report import method_pairs, tables
from quantwatt.report.cells import Cell
from quantwatt.report.compare import change
from quantwatt.report.compare.change import NOT_COMPARED, Change
from quantwatt.report.compare.comparison import EXACT, RATIOS, same_images
from quantwatt.report.compare.result_folder import Result, number
from quantwatt.score.metrics import Undefined

EXTRACTION = ("extractor", "weights_sha256", "resize")  # equal in features that are compared
NO_VALUES = "its score has no values of single images; delete it and run again"


def compare(result: Result, one: str, other: str) -> list[Change]:
    """All figures of two methods, in every model and sampling that have both.

    Returns:
        Changes whose `before` is the other method's figure and `after` the one's.
    Raises:
        DataError: the result has no such method, or not both in any sampling, or one is the baseline.
    """
    methods = list(dict.fromkeys(method for _, _, method in result.rows))
    for name in (one, other):
        if name not in methods:
            raise DataError(f"{result.folder}: there is no method '{name}'; there are {', '.join(methods)}.")
    if one == other:
        raise DataError(f"--methods: '{one}' twice; name two methods.")
    baseline = next((method for (_, _, method), row in result.rows.items() if row["baseline"]), None)
    if baseline in (one, other):
        raise DataError(
            f"--methods: '{baseline}' is the baseline: {result.folder}/tables/summary.csv compares with it."
        )
    found: list[Change] = []
    for model, sampling in dict.fromkeys((model, sampling) for model, sampling, _ in result.rows):
        keys = [(model, sampling, name) for name in (one, other)]
        if all(key in result.rows for key in keys):
            reference = (model, sampling, result.baseline_of(keys[0]) or "")
            base = result.cell(reference) if reference in result.rows else None
            found += _compare(result, [result.cell(key) for key in keys], [result.rows[key] for key in keys], base)
    if not found:
        raise DataError(f"{result.folder}: nothing of '{one}' and '{other}' was measured or scored in one sampling.")
    return found


def _compare(result, cells, rows, base) -> Iterator[Change]:
    one, other = (cell.method for cell in cells)
    alike = same_images(*cells)
    pairs = method_pairs.differences(cells).get((0, 1), {}) if alike else {}
    margin = number(rows[0], "margin")
    margin = tables.MARGIN if math.isnan(margin) else margin
    pairs |= method_pairs.ratios(cells, base, margin).get((0, 1), {})

    def figure(name: str, column: str, is_ratio: bool = False) -> Change:
        after, before = (None if math.isnan(value := number(row, column)) else value for row in rows)
        named = (cells[0].model, cells[0].sampling, f"{one} against {other}")
        return Change(*named, name, NOT_COMPARED, before, after, is_ratio=is_ratio)

    for name, metric in tables.METRICS.items():
        shown = figure(name, metric.column)
        if None in (shown.before, shown.after):
            continue
        if not alike:
            yield change.replace(shown, note="they have other prompts or seeds")
        elif f"{metric.column}_verdict" in pairs:
            yield _taken(shown, pairs, f"{metric.column}_difference", f"{metric.column}_verdict")
        elif metric_entries.compares_with_reference(name):
            yield _by_features(result, shown, name, cells)
        else:
            yield change.replace(shown, note=NO_VALUES)
    names = {column: name for name, column in RATIOS.items()}
    for cost, _ in tables.COSTS.values():
        shown = figure(names[f"{cost}_ratio"], f"{cost}_ratio", is_ratio=True)
        if f"{cost}_verdict" in pairs:
            yield _taken(shown, pairs, f"{cost}_ratio", f"{cost}_verdict")
        else:
            yield change.replace(shown, note=method_pairs.why_no_ratio(*cells, pairs))
    for name, column in EXACT.items():
        shown = figure(name, column, is_ratio=True)
        if None not in (shown.before, shown.after):
            yield change.told(shown, (number(rows[0], column) / number(rows[1], column),) * 3, 1, margin, None)


def _taken(shown, pairs, column, verdict):
    """A figure that the table of pairs has."""
    value, low, high = (pairs[f"{column}{end}"] for end in ("", "_low", "_high"))
    bounds = {"low": None, "high": None} if math.isnan(low) else {"low": low, "high": high}
    value = None if math.isnan(value) else value
    return change.replace(shown, value=value, verdict=pairs[verdict] or NOT_COMPARED, **bounds)


def _by_features(result: Result, shown: Change, name: str, cells: list[Cell]) -> Change:
    """A distance's difference, by its metric's own `change`."""
    score, metric = cells[0].scores.get(name, {}), tables.metric_of(name)
    module: Any = registry.load("metrics", name)
    try:
        samples, compared = _features(result, name, score.get("features"), cells)
        difference = module.change(*samples, compared, score.get("resamples") or None)
    except (DataError, Undefined) as error:
        return change.replace(shown, note=str(error))
    if math.isnan(difference.low):
        return change.replace(shown, value=difference.value, note=difference.reason)
    verdict = method_pairs.judged(difference[:3], metric)
    return change.replace(
        shown, value=difference.value, low=difference.low, high=difference.high, verdict=verdict or NOT_COMPARED
    )


def _features(result, metric, extractor, cells):
    """([features of each cell], what the metric compares them with)."""
    if extractor is None:
        raise DataError("its score does not say of which features it is")
    names = [{"model": cell.model, "method": cell.method, "sampling": cell.sampling, "extractor": extractor}
             for cell in cells]  # fmt: skip
    paths = [layout.path(result.folder, "features", own) for own in names]
    read = [feature_files.read_features(path) for path in paths]
    reference = layout.path(result.folder, "reference_features", {"extractor": extractor})
    if metric_entries.compared_with(metric) == "moments":
        fields, compared = feature_files.read_moments(reference)
    else:
        fields, arrays = feature_files.read_features(reference)
        compared = arrays["image"]
    for path, (own, _) in zip(paths, read, strict=True):
        for key in EXTRACTION:
            if own[key] != fields[key]:
                raise DataError(f"{path}: {key} is {own[key]}, but {fields[key]} in {reference}")
    return [arrays["image"] for _, arrays in read], compared
