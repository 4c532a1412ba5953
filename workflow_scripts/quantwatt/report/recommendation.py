"""What to take: which methods hold the limits, how sure that is, and the cheapest of them.

A method holds a limit for sure if the whole interval of its figure does, and not if the whole interval does not;
where the interval straddles the limit, it is not sure. A figure without an interval counts as exact. Without limits
of quality the first scored metric that has an acceptable level (x-shown in its schema) is the limit.

Of the methods that no limit excludes, that take less energy than the baseline, or else less time, and not more of the
other, the cheapest is found; all methods whose interval overlaps its own are not told apart from it, and of these the
smallest is taken among those whose quality is not told apart from the best of them. So no method is taken because its
measurement happened to be the lowest.
Where none is told to save energy or time, the smallest of those that are not told to cost more is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from quantwatt.config import metric_entries
from quantwatt.config.metric_entries import Metric
from quantwatt.report import tables
from quantwatt.report.tables import BETTER, EQUAL, TOO_NOISY, UNCONTROLLED, UNDECIDED, UNMEASURED, WITHIN_CONTROL

MOST = {  # {limit: (column, what it is in words, unit)}
    "max_energy_j": ("energy_j", "energy", "J"),
    "max_latency_s": ("latency_s", "time", "s"),
    "max_memory_mb": ("memory_mb", "peak memory", "MB"),
    "max_size_mb": ("size_mb", "weights", "MB"),
}
HOLDS, UNSURE, FAILS, UNKNOWN = "holds", "not sure", "fails", "not known"
COSTS = {"energy": ("energy_ratio", "verdict"), "time": ("latency_ratio", "latency_verdict")}
ORDER = (BETTER, BETTER + WITHIN_CONTROL, BETTER + UNCONTROLLED)  # of verdicts that are worth taking a method for
AS_SMALL = 1.01  # times the smallest weights: of these the best in quality is taken
SMALLER = 0.9  # of the baseline's weights: less is worth taking a method for that saves nothing else
AXES = {"energy": "energy_ratio", "time": "latency_ratio", "weights": "size_mb", "memory": "memory_mb"}

Row = Mapping[str, Any]


def recommend(summary: pd.DataFrame, limits: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """What to take, for each model, sampling and device.

    Args:
        summary: as of tables.summary_table; samplings that differ from an earlier one by seed or steps do not count.
        limits: {key of MOST: largest value or None} and "min_quality": {metric: value, or {"margin": largest worsening
            from the baseline}}.
    Returns:
        list of {"model", "sampling", "device", "baseline": name, "limits": {name: in words}, "quality": column of the
        metric that methods are compared by, or None, "saves": "energy", "time", "weights" or None, "take", "second":
        names or None, "nearest": name, where a limit excludes all, "why": sentence where nothing is taken, "methods",
        "by_limit": as of `_by_limit`, None without a limit of quality}.
        "methods" are {"method", "taken": "first", "second" or None, "feasible", "certain", "limits": {name: HOLDS or
        another}, "fronts": [names of AXES], "reason": in words that methods share, "why"}.
    """
    found = []
    for _, rows in tables.groups(tables.first_samplings(summary)):
        base = rows[rows["baseline"].astype(bool)]
        if len(base):
            found.append(_group(rows, base.iloc[0], limits or {}))
    return found


def _group(rows, base, limits):
    asked = _limits(rows, limits)
    others = rows[~rows["baseline"].astype(bool)]
    metric = _compared_by(others, asked)
    name = next((name for name, one in metric_entries.shown().items() if one == metric and name in asked), None)
    return {
        **{key: _text(base[key]) for key in ("model", "sampling", "device")},
        "baseline": base["method"],
        "limits": {name: words for name, (words, _) in asked.items()},
        "quality": metric and metric.column,
        **_outcome(others, base, asked, metric),
        "by_limit": None if name is None else _by_limit(name, metric, others, base, asked, limits),
    }


def _outcome(others, base, asked, metric):
    """What is taken under some limits, and what is said of each method."""
    real = others[tables.is_real(others)]
    told = {row["method"]: {name: check(row, base) for name, (_, check) in asked.items()} for _, row in real.iterrows()}
    holding = [name for name, checks in told.items() if not {FAILS, UNKNOWN} & set(checks.values())]
    feasible = real[real["method"].isin(holding)]
    saves, first = _choose(feasible, base, metric)
    rest = feasible[feasible["method"] != first] if first else feasible
    second = _choose(rest, base, metric)[1] if first else None
    fronts = {name: _front(feasible, column, metric) for name, column in AXES.items()}
    outcome = {
        "saves": saves,
        "take": first,
        "second": second,
        "nearest": None if len(feasible) or metric is None else _nearest(real, metric),
        "why": None if first else _why_nothing(base, real, feasible),
        "methods": [],
    }
    for _, row in others.iterrows():
        name = row["method"]
        checks = told.get(name, {})
        reason, why = _why(row, base, asked, checks, outcome)
        outcome["methods"].append(
            {
                "method": name,
                "taken": "first" if name == first else "second" if name == second else None,
                "feasible": name in set(feasible["method"]),
                "certain": name in told and all(told == HOLDS for told in checks.values()),
                "limits": checks,
                "fronts": [axis for axis, names in fronts.items() if name in names],
                "reason": reason,
                "why": why,
            }
        )
    return outcome


def _by_limit(name, metric, others, base, asked, limits):
    """How the answer moves with the limit of quality.

    Returns:
        {"metric": name, "limit": as given, or the metric's own, "is_margin": whether it is one of the change from
        the baseline, "steps": [{"strictest": limit up to which this holds, None: any, "saves", "take", "second",
        "nearest", "why", "reasons": {reason: methods}}], the mildest first}.
    """
    wanted = (limits.get("min_quality") or _acceptable(others, metric_entries.shown()))[name]
    is_margin = isinstance(wanted, Mapping)
    column = f"{metric.column}_change" if is_margin else metric.column
    # A method is excluded by limits beyond the better end of its interval.
    better = 1 if metric.higher_is_better else -1
    ends = {max(better * end for end in _interval(row, column) if not math.isnan(end))
            for _, row in others[tables.is_real(others)].iterrows() if pd.notna(row[column])}  # fmt: skip
    steps: list[dict[str, Any]] = []
    for end in [*sorted(ends), math.inf]:
        limit = {"margin": -end} if is_margin else better * end
        outcome = _outcome(others, base, asked | _limit_of_quality(name, limit), metric)
        step = {key: outcome[key] for key in ("saves", "take", "second", "nearest", "why")}
        strictest = None if math.isinf(end) else -end if is_margin else better * end
        steps.append({"strictest": strictest, **step, "reasons": reasons(outcome["methods"])})
    return {"metric": name, "limit": wanted["margin"] if is_margin else wanted, "is_margin": is_margin, "steps": steps}


def reasons(methods: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """{reason: names of the methods that are not taken for it}."""
    found: dict[str, list[str]] = {}
    for method in methods:
        if not method["taken"]:
            found.setdefault(method["reason"], []).append(method["method"])
    return found


def _limits(rows, limits):
    """{name: (the limit in words, function of a row and the baseline's that returns HOLDS, ...)}."""
    found = {}
    for name, (column, what, unit) in MOST.items():
        if limits.get(name) is not None:
            most = limits[name]
            found[name] = (
                f"{what} of at most {most:g} {unit}",
                lambda row, base, c=column, m=most: held(*_interval(row, c), most=m),
            )
    for name, wanted in (limits.get("min_quality") or _acceptable(rows, metric_entries.shown())).items():
        found |= _limit_of_quality(name, wanted)
    return found


def _limit_of_quality(name, wanted):
    """As of `_limits`; wanted: the worst value, or {"margin": the largest worsening from the baseline}."""
    metric = metric_entries.shown()[name]
    if isinstance(wanted, Mapping):
        return {name: _worsening(metric, wanted["margin"])}
    bound, words = ("least", "at least") if metric.higher_is_better else ("most", "at most")
    return {
        name: (
            f"{metric.title} of {words} {wanted:g}{metric.unit and f' {metric.unit}'}",
            lambda row, base: held(*_interval(row, metric.column), **{bound: wanted}),
        )
    }


def _worsening(metric, margin):
    column, sign = f"{metric.column}_change", 1 if metric.higher_is_better else -1

    def check(row, base):
        value, low, high = _interval(row, column)
        ends = sorted((sign * low, sign * high)) if not math.isnan(low) else (math.nan, math.nan)
        return held(sign * value, *ends, least=-margin)

    return f"{metric.title} at most {margin:g} worse than the unquantized model's", check


def _acceptable(rows, metrics):
    """The limit of quality that holds where none was given."""
    for name, metric in metrics.items():
        column = metric.column if metric.paired else f"{metric.column}_change"
        if metric.acceptable is not None and rows[column].notna().any():
            return {name: metric.acceptable if metric.paired else {"margin": metric.acceptable}}
    return {}


def held(value: float, low: float, high: float, least: float | None = None, most: float | None = None) -> str:
    """Whether a figure with its interval (NaN where there is none) is at least or at most a limit."""
    if math.isnan(value):
        return UNKNOWN
    low, high = (value if math.isnan(bound) else bound for bound in (low, high))
    if (least is None or low >= least) and (most is None or high <= most):
        return HOLDS
    if (least is not None and high < least) or (most is not None and low > most):
        return FAILS
    return UNSURE


def _interval(row, column):
    """(value, low, high) of a column, with NaN for what is missing or has no interval."""
    return tuple(float(row[name]) if pd.notna(row.get(name)) else math.nan
                 for name in (column, f"{column}_low", f"{column}_high"))  # fmt: skip


def _compared_by(rows, asked):
    """The metric by which methods of equal cost are compared: the first limit's, else the first with values."""
    metrics = metric_entries.shown()
    limited = [metrics[name] for name in asked if name in metrics]
    return next(iter(limited), None) or tables.first_metric(rows)


def quality_of(row: Row, metric: Metric | None) -> float:
    """A method's quality by a metric, the higher the better; -inf where it was not scored."""
    value = math.nan if metric is None else _interval(row, metric.column)[0]
    return -math.inf if math.isnan(value) else value if metric is None or metric.higher_is_better else -value


def _choose(rows, base, metric):
    """(what it saves, name of the method), of rows that no limit excludes; (None, None) where nothing saves."""

    def best(tied, ratio):
        alike = _alike(tied, metric)
        keys = [(row["size_mb"], -quality_of(row, metric), row[ratio]) for _, row in alike.iterrows()]
        return alike.iloc[keys.index(min(keys))]["method"]

    verdicts = [rows[verdict].astype(str) for _, verdict in COSTS.values()]
    rows = rows[~verdicts[0].str.startswith(tables.WORSE) & ~verdicts[1].str.startswith(tables.WORSE)]
    for told in ORDER:
        for cost, (ratio, verdict) in COSTS.items():
            saving = rows[rows[verdict] == told]
            if len(saving):
                cheapest = saving.loc[saving[ratio].idxmin()]
                return cost, best(saving[saving[f"{ratio}_low"] <= cheapest[f"{ratio}_high"]], ratio)
    known = rows["verdict"].isin([EQUAL, UNDECIDED]) | rows["latency_verdict"].isin([EQUAL, UNDECIDED])
    smaller = rows[known & (rows["size_mb"] <= SMALLER * base["size_mb"])]
    if smaller.empty:
        return None, None
    return "weights", best(smaller[smaller["size_mb"] <= AS_SMALL * smaller["size_mb"].min()], "energy_ratio")


def _alike(rows, metric):
    """The rows whose quality is not told apart from the best: their intervals meet its own."""
    if metric is None or rows[metric.column].isna().all():
        return rows
    values, low, high = (rows[f"{metric.column}{end}"].astype(float) for end in ("", "_low", "_high"))
    best = values.idxmax() if metric.higher_is_better else values.idxmin()
    meet = high >= low[best] if metric.higher_is_better else low <= high[best]
    return rows[meet | (values == values[best])]


def _front(rows, column, metric):
    """Names of the methods that no other one is below in cost and at least as good as, or the reverse."""
    points = [(row["method"], row[column], quality_of(row, metric)) for _, row in rows.iterrows()]
    points = [point for point in points if pd.notna(point[1]) and point[2] > -math.inf]
    return [
        name for name, cost, quality in points
        if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for _, c, q in points)
    ]  # fmt: skip


def _nearest(real, metric):
    """The method that is best in quality, where a limit excludes all."""
    scored = [(quality_of(row, metric), -place, row["method"]) for place, (_, row) in enumerate(real.iterrows())]
    return max(scored, default=(0, 0, None))[2]


def _why_nothing(base, real, feasible):
    if real.empty:
        return "no quantized method was measured here"
    if feasible.empty:
        return "no measured method holds the limits"
    noisy = all(row["verdict"] == TOO_NOISY for _, row in feasible.iterrows())
    return (
        "the machine was too noisy to tell" if noisy else f"no method that holds them costs less than {base['method']}"
    )


def _why(row, base, asked, checks, outcome):
    """(the reason in words that other methods share, half a sentence): why a method is taken or not."""
    if row["status"] == "simulated":
        return "only simulated here", "its cost was only simulated here"
    if row["status"] == UNMEASURED:
        return "not measured", str(row["reason"])
    if row["status"] != "ok":
        return "failed", str(row["reason"])
    for name, told in checks.items():
        words = asked[name][0]
        if told == FAILS:
            kind = f"{_title(name)} beyond the limit" if name in MOST else f"{_title(name)} worse than the limit"
            return kind, f"{_figure(row, name)}; asked: {words}"
        if told == UNKNOWN:
            return f"no {_title(name)}", f"it has no figure for: {words}"
    if row["method"] in (outcome["take"], outcome["second"]):
        straddling = [asked[name][0] for name, told in checks.items() if told == UNSURE]
        return "holds", "holds the limits" + (f", for sure but for: {'; '.join(straddling)}" if straddling else "")
    if outcome["saves"] not in COSTS:
        return _why_no_saving(row, base, outcome)
    saves, base = outcome["saves"], base["method"]
    told = str(row[COSTS[saves][1]])
    if told.startswith(BETTER):
        return f"no more {saves} saved than by {outcome['take']}", f"saves no more {saves} than {outcome['take']}"
    if told == EQUAL:
        return f"as much {saves}", f"takes as much {saves} as {base}"
    if told.startswith(tables.WORSE):
        return f"more {saves}", f"takes more {saves} than {base}"
    return f"{saves} not told apart", f"its {saves} is not told apart from that of {base}"


def _why_no_saving(row, base, outcome):
    """As of `_why`, where nothing is told to save energy or time."""
    told = {row[verdict] for _, verdict in COSTS.values() if pd.notna(row[verdict])}
    if told == {TOO_NOISY}:
        return "too noisy to tell", TOO_NOISY
    if UNDECIDED not in told or any(str(verdict).startswith(tables.WORSE) for verdict in told):
        return "no cheaper", f"costs no less than {base['method']}"
    if outcome["take"]:
        return "no smaller or better", f"its weights are no smaller, or no better, than {outcome['take']}'s"
    return "not told cheaper", f"its cost is not told apart from that of {base['method']}"


def _title(limit):
    return MOST[limit][1] if limit in MOST else metric_entries.shown()[limit].title


def _figure(row, limit):
    metrics = metric_entries.shown()
    if limit in metrics:
        metric = metrics[limit]
        value, title, unit = row[metric.column], metric.title, metric.unit
    else:
        column, title, unit = MOST[limit]
        value = row[column]
    return f"{title} {value:.3g}{unit and f' {unit}'}"


def _text(value):
    return None if pd.isna(value) else str(value)


COLUMNS = ("model", "sampling", "device", "method", "taken", "feasible", "certain", "limits", "fronts", "why")


def lines(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of recommendation.csv, with COLUMNS."""
    return [
        {key: group[key] for key in ("model", "sampling", "device")}
        | {key: method[key] for key in ("method", "taken", "why")}
        | {key: str(method[key]).lower() for key in ("feasible", "certain")}
        | {
            "limits": "; ".join(f"{name}: {told}" for name, told in method["limits"].items()),
            "fronts": " ".join(method["fronts"]),
        }
        for group in groups
        for method in group["methods"]
    ]
