"""Compare two results row by row: the same methods at another commit, library version, machine or month.

Quality: where both results drew from the same prompts and seeds, the values of single images are compared in pairs;
else the two intervals are independent. Features, references and numbers of images that change a metric's meaning are
refused, not compared.

Cost: the ratio to the baseline measured beside each method, against the earlier ratio, by the independent intervals of
both. Seconds and joules themselves are compared, too, but do not count unless asked for: their intervals are over
processes of one afternoon, and do not hold what another day's load or temperature changes for all methods alike. On
another device, by another meter, or in batches of another size no cost is compared at all.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from quantwatt.artifacts.errors import DataError
from quantwatt.config import metric_entries
from quantwatt.report import independent, method_pairs, tables
from quantwatt.report.cells import Cell
from quantwatt.report.compare import change, differing
from quantwatt.report.compare.change import GAINED, LOST, NOT_COMPARED, Change
from quantwatt.report.compare.differing import Difference
from quantwatt.report.compare.result_folder import Key, Result, Row, interval, number

REGRESSION, NO_REGRESSION, UNDECIDED = "regression", "no regression", "undecided"
UNKNOWN = (NOT_COMPARED, LOST, tables.TOO_NOISY)  # verdicts that leave open whether a figure got worse
RATIOS = {"energy ratio": "energy_ratio", "time ratio": "latency_ratio"}
ABSOLUTE = {"energy": "energy_j", "time": "latency_s"}
EXACT = {"memory": "memory_mb", "size": "size_mb"}
OF_FEATURES = ("features", "resize")  # of a score; with another one it is another metric


@dataclass(frozen=True)
class Comparison:
    """What became of an earlier result.

    only_earlier, only_now: rows that one of both lacks. refused: (what is not compared, why, rows).
    """

    earlier: str
    now: str
    changes: list[Change]
    differences: list[Difference]
    only_earlier: list[Key]
    only_now: list[Key]
    refused: list[tuple[str, str, list[Key]]]

    @property
    def outcome(self) -> str:
        """REGRESSION if a figure is one; else UNDECIDED if something of the earlier result could not be compared."""
        if any(one.regression for one in self.changes):
            return REGRESSION
        compared = any(one.chance is not None for one in self.changes)
        unknown = self.only_earlier or self.refused or any(one.verdict in UNKNOWN for one in self.changes)
        return UNDECIDED if unknown or not compared else NO_REGRESSION

    def as_json(self) -> dict:
        return {"outcome": self.outcome, **asdict(self)}


def compare(
    earlier: Result, now: Result, tolerated: Mapping[str, float] | None = None, absolute: bool = False
) -> Comparison:
    """Compare all rows that two results have in common.

    Args:
        tolerated: {figure: change for the worse that is no regression}, of ratios relative; default: 0 of a metric, the
            margin of the results (config.yaml) of a cost.
        absolute: whether time and energy themselves count, beside their ratios to the baseline.
    Raises:
        DataError: a file cannot be read, or a tolerated figure is unknown.
    """
    known = (*tables.METRICS, *RATIOS, *ABSOLUTE, *EXACT)
    if unknown := [name for name in tolerated or () if name not in known]:
        raise DataError(f"{unknown[0]}: no such figure; one of {', '.join(known)}.")
    before, after = list(earlier.rows), list(now.rows)
    changes: list[Change] = []
    refused: dict[tuple[str, str], list[Key]] = {}
    told = {}
    for key in (key for key in before if key in now.rows):
        rows, cells = (earlier.rows[key], now.rows[key]), (earlier.cell(key), now.cell(key))
        told[key] = dict(differing.facts(cells[0], rows[0])), dict(differing.facts(cells[1], rows[1]))
        changes += _status(key, *rows)
        if all(row["status"] in ("ok", "simulated") for row in rows):
            bases = earlier.baseline_of(key), now.baseline_of(key)
            changes += _qualities(key, rows, cells, bases, tolerated or {})
            why = why_no_cost(rows, cells, bases)
            for what, reason in why.items():
                refused.setdefault((what, reason), []).append(key)
            changes += _costs(key, rows, why, tolerated or {}, absolute)
    return Comparison(
        earlier.folder,
        now.folder,
        _sorted(change.with_regressions(changes)),
        differing.differences(told),
        [key for key in before if key not in now.rows],
        [key for key in after if key not in earlier.rows],
        [(*what, keys) for what, keys in refused.items()],
    )


def _named(key: Key, figure: str, found: Sequence[Sequence[float]] = (), is_ratio: bool = False) -> Change:
    """A Change of a row, with the two figures (value, low, high) where there are some."""
    model, sampling, method = key
    before, after = (None if math.isnan(value) else value for value, *_ in found) if found else (None, None)
    return Change(model, sampling, method, figure, NOT_COMPARED, before, after, is_ratio=is_ratio)


def _status(key, before, after) -> Iterator[Change]:
    """A cell that failed and did not before, or the reverse; a method may lose its kernel, too."""
    order = {"ok": 2, "simulated": 1}
    one, other = (order.get(str(row["status"]), 0) for row in (before, after))
    if one != other:
        note = f"was {before['status']}, is {after['status']}"
        reason = after["reason"] if other < one else before["reason"]
        note += "" if pd.isna(reason) else f": {reason}"
        lost = other < one
        yield change.replace(_named(key, "status"), verdict=LOST if lost else GAINED, regression=lost, note=note)


def _qualities(key, rows, cells, bases, tolerated) -> Iterator[Change]:
    for name, metric in tables.METRICS.items():
        found = [interval(row, metric.column) for row in rows]
        if all(math.isnan(value) for value, *_ in found):
            continue
        one = _named(key, name, found)
        if any(math.isnan(value) for value, *_ in found):
            yield _one_sided(one, [row[f"{metric.column}_reason"] for row in rows])
            continue
        if why := _other_metric(name, cells, rows, bases):
            yield change.replace(one, note=why)
            continue
        paired = difference_of_images(*(cell.scores.get(name, {}) for cell in cells)) if same_images(*cells) else None
        margin = 0.0 if metric.paired else metric.acceptable or 0.0
        worse = -1 if metric.higher_is_better else 1
        degrees = independent.MANY if paired is None else len(cells[0].scores[name]["values"]) - 1
        apart = paired or independent.difference(found[1], found[0])
        yield change.told(one, apart, worse, margin, tolerated.get(name, 0.0), degrees, drawn=paired is not None)


def _one_sided(one, reasons):
    """A figure that only one of both sides has."""
    lost = one.after is None
    reason = reasons[1 if lost else 0]
    return change.replace(one, verdict=LOST if lost else GAINED, note=None if pd.isna(reason) else str(reason))


def _other_metric(name, cells, rows, bases):
    """Why a metric means something else on the two sides, or None."""
    scores = [cell.scores.get(name, {}) for cell in cells]
    if tables.metric_of(name).paired and bases[0] != bases[1]:
        return f"held against {bases[0]}, now against {bases[1]}"
    with_reference = metric_entries.compares_with_reference(name)
    for key in (*OF_FEATURES, *(["reference_sha256"] if with_reference else [])):
        one, other = (score.get(key) for score in scores)
        if one != other and None not in (one, other):
            return f"another {key.removesuffix('_sha256')}: {one[:40]}, now {other[:40]}"
    extractors = [row["features"] for row in rows]
    if tables.metric_of(name).published_features and extractors[0] != extractors[1] and not pd.isna(extractors).any():
        return f"other features: {extractors[0]}, now {extractors[1]}"
    numbers = [number(row, "n_images") for row in rows]
    if metric_entries.depends_on_count(name) and numbers[0] != numbers[1]:
        return f"it depends on the number of images: {numbers[0]:.0f}, now {numbers[1]:.0f}"
    return None


def same_images(one: Cell, other: Cell) -> bool:
    """Whether two cells have the same prompts and seeds, or texts, in the same order."""
    asked = [
        (cell.images.get("prompts_sha256") or cell.images.get("texts_sha256"), cell.images.get("seed"))
        for cell in (one, other)
    ]
    return asked[0] == asked[1] and asked[0][0] is not None


def difference_of_images(before: Mapping, after: Mapping) -> tuple[float, float, float] | None:
    """(after minus before, low, high) of two scores, in pairs of images; None without the values of as many images."""
    if any(score.get("values") is None for score in (before, after)) or len(before["values"]) != len(after["values"]):
        return None
    logs = bool(before.get("log_values"))
    shares, others = (np.ones(len(score["values"])) if score.get("weights") is None else np.asarray(score["weights"])
                      for score in (before, after))  # fmt: skip
    if logs != bool(after.get("log_values")) or not np.array_equal(shares, others):
        return None
    return method_pairs.difference_of(np.column_stack([after["values"], before["values"]]), shares, logs)


def why_no_cost(
    rows: tuple[Row, Row], cells: tuple[Cell, Cell], bases: tuple[str | None, str | None]
) -> dict[str, str]:
    """{"cost", "energy" or "ratio": why it is not compared}; bases: names of the two baselines."""
    before, after = rows
    if any(math.isnan(number(row, "latency_s")) for row in rows):
        return {}  # nothing was measured on one side, which is told by the figures
    devices = [tuple(str(row[key]) for key in ("device", "device_id")) for row in rows]
    if devices[0] != devices[1]:
        return {"cost": f"measured on {before['device']}, now on {after['device']}"
                + ("" if before["device"] != after["device"] else ", another one")}  # fmt: skip
    batches = [cell.measurement.get("images_per_batch") for cell in cells]
    if batches[0] != batches[1] and None not in batches:
        return {"cost": f"measured in batches of {batches[0]}, now of {batches[1]}"}
    if before["meter"] != after["meter"] and not pd.isna([before["meter"], after["meter"]]).any():
        return {"energy": f"read by {before['meter']}, now by {after['meter']}"}
    watts = [[(cell.measurement.get("measuring") or {}).get(key) for key in ("idle_w", "full_w")] for cell in cells]
    if before["meter"] == "estimate" and watts[0] != watts[1]:
        return {"energy": f"estimated between {_watts(watts[0])}, now between {_watts(watts[1])}"}
    return {"ratio": f"to {bases[0]}, now to {bases[1]}"} if bases[0] != bases[1] else {}


def _watts(pair):
    return " and ".join("unknown" if watts is None else f"{watts:g} W" for watts in pair)


def _costs(key, rows, why, tolerated, absolute) -> Iterator[Change]:
    margin = number(rows[1], "margin")
    margin = tables.MARGIN if math.isnan(margin) else margin
    degrees = [independent.degrees_of(*(number(row, name) for name in ("n_processes", "n_pairs", "n_disturbed")))
               for row in rows]  # fmt: skip
    for figure, column in {**RATIOS, **ABSOLUTE, **EXACT}.items():
        if (figure != "size" and "cost" in why) or any(word in figure for word in why):
            continue
        found = [tuple(bound if bound > 0 else math.nan for bound in interval(row, column)) for row in rows]
        if all(math.isnan(value) for value, *_ in found):
            continue
        one = _named(key, figure, found, is_ratio=True)
        if None in (one.before, one.after):
            yield _one_sided(one, [_reason(row, column) for row in rows])
            continue
        counts = tolerated.get(figure, margin) if absolute or figure not in ABSOLUTE else None
        if figure in EXACT:  # one value, without an interval
            found = [(value, value, value) for value, *_ in found]
        before, after = ([math.log(bound) for bound in bounds] for bounds in found)
        errors = (independent.standard_error(*side[1:], d) for side, d in zip((before, after), degrees, strict=True))
        _, freedom = independent.added(next(errors), degrees[0], next(errors), degrees[1])
        apart = independent.ratio(found[1], found[0], degrees[1], degrees[0])
        yield change.told(one, apart, 1, margin, counts, float(freedom))


def _reason(row, column):
    names = {"energy_ratio": "ratio_reason", "latency_ratio": "ratio_reason"}
    return row.get(names.get(column, f"{column.rsplit('_', 1)[0]}_reason"))


def _sorted(changes):
    """Regressions first, then what was lost, worse, better and the rest; larger changes first."""
    order = (LOST, tables.WORSE, tables.BETTER, GAINED, NOT_COMPARED, tables.TOO_NOISY, tables.UNDECIDED, tables.EQUAL)
    return sorted(changes, key=lambda one: (not one.regression, order.index(one.verdict), one.chance or 0.0))
