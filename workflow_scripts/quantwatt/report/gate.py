"""Decide whether methods pass a policy: non-inferiority and equivalence tests on the summary's paired intervals.

A check is passed if its figure lies inside the limit by a one-sided test (two for `within`) at the level `alpha`,
failed if it lies outside by a test at `alpha` over the number of checks, else undecided. A method passes only if all
its checks do, so that one that lies at a limit passes with at most the chance `alpha`, however many checks there are
(an intersection-union test); one that holds all limits fails with at most this chance (Bonferroni's correction). The
standard error is that of the summary's 95 % interval: of images by a normal distribution, of costs by Student's t
over processes, of ratios on the logarithmic scale.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from quantwatt.artifacts.errors import DataError
from quantwatt.config import gate_policy, metric_entries
from quantwatt.config.gate_policy import NAMED
from quantwatt.report import independent, markdown, tables
from quantwatt.report.independent import MANY, quantile

PASSED, FAILED, UNDECIDED = "passed", "failed", "undecided"
RATIOS = {"energy": "energy_ratio", "time": "latency_ratio"}
# The schema's, for a policy that is given in parts.
DEFAULTS = {"alpha": 0.05, "power": 0.9, "models": None, "methods": None, "samplings": None, "quality": {}, "cost": {}}


@dataclass(frozen=True)
class Check:
    """One limit of one method.

    value, low, high: the figure, and the bounds of a one-sided test at the level alpha to both sides; None: no figure.
    least, most: the limits; None: none.
    needed: number of images, or processes, that would decide it with the policy's power if the figure stayed; None
        where it is decided or none would.
    note: what to know beside it.
    """

    model: str
    sampling: str
    method: str
    check: str
    outcome: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    least: float | None = None
    most: float | None = None
    needed: int | None = None
    note: str | None = None


def judge(summary: pd.DataFrame, policy: Mapping[str, Any], file: str = "the policy") -> list[Check]:
    """All checks of all methods that the policy names.

    Args:
        summary: as of tables.summary_table; policy: complete; file: its name in messages.
    Raises:
        DataError: the policy names something that the summary lacks; names file and key.
    """
    names = {key: list(summary[column].unique()) for key, column in NAMED.items()}
    baseline = next(iter(summary.loc[summary["baseline"].astype(bool), "method"]), None)
    if sentence := gate_policy.wrong(policy, names, baseline, metric_entries.shown()):
        raise DataError(f"{file}: {sentence}")
    found = []
    for _, row in tables.first_seeds(summary).iterrows():
        asked = all(policy[kind] is None or row[column] in policy[kind] for kind, column in NAMED.items())
        if asked and not row["baseline"]:
            found += checks_of(row, summary, policy)
    return found


def checks_of(row: pd.Series, summary: pd.DataFrame, policy: Mapping[str, Any]) -> list[Check]:
    """All checks of one row of the summary."""
    named = functools.partial(Check, str(row["model"]), str(row["sampling"]), str(row["method"]))
    tests = list(_tests(row, policy))
    found = []
    degrees = independent.degrees_of(row["n_processes"], row["n_pairs"], row["n_disturbed"])
    for check, figure, least, most, n, log in tests:
        one = named(check, UNDECIDED, least=least, most=most)
        if figure is None:
            reason = row["reason"] if row["status"] != "ok" else "it was not measured or scored"
            found.append(replace(one, note=str(reason)))
            continue
        found.append(_decided(one, figure, n, degrees if log else MANY, log, policy, len(tests)))
    return [replace(one, note=one.note or _floor(one, row, summary)) for one in found]


def _tests(row, policy) -> Iterator[tuple]:
    """(name, (value, low, high) or None, least, most, number of images or processes, whether it is a ratio)."""
    metrics = metric_entries.shown()
    for name, entry in policy["quality"].items():
        metric, ((kind, limit),) = metrics[name], entry.items()
        column = metric.column if kind == "limit" else f"{metric.column}_change"
        better = metric.higher_is_better
        if kind == "limit":
            least, most = (limit, None) if better else (None, limit)
        elif kind == "margin":
            least, most = (-limit, None) if better else (None, limit)
        else:
            least, most = -limit, limit
        yield name, _figure(row, column), least, most, row["n_images"], False
    for name, most in policy["cost"].items():
        if name in RATIOS:
            yield name, _figure(row, RATIOS[name]), None, most, row["n_processes"], True
        else:
            yield name, _figure(row, name), None, most, math.nan, False


def _figure(row, column):
    if pd.isna(row[column]) or row["status"] != "ok":
        return None
    ends = (row.get(f"{column}_low"), row.get(f"{column}_high"))
    return float(row[column]), *(math.nan if end is None or pd.isna(end) else float(end) for end in ends)


def _decided(check, figure, n, degrees, log, policy, n_checks):
    """The Check with its bounds, its outcome and what would decide it."""
    value, low, high = map(math.log, figure) if log and not math.isnan(figure[1]) and figure[1] > 0 else figure
    scale = math.log if log else float
    limits = [None if limit is None else scale(limit) for limit in (check.least, check.most)]
    error, reach, far = 0.0, 0.0, 0.0
    if math.isnan(low):
        if log or not math.isnan(n):  # a figure that varies, without an interval
            return replace(check, value=figure[0], note="it has no interval")
        value = scale(figure[0])
    else:
        error = float(independent.standard_error(low, high, degrees))
        reach = float(quantile(1 - policy["alpha"], degrees)) * error
        far = float(quantile(1 - policy["alpha"] / n_checks, degrees)) * error
    inside = all(limit is None or (value - reach >= limit if side == 0 else value + reach <= limit)
                 for side, limit in enumerate(limits))  # fmt: skip
    outside = any(limit is not None and (value + far < limit if side == 0 else value - far > limit)
                  for side, limit in enumerate(limits))  # fmt: skip
    back = math.exp if log else float
    outcome = PASSED if inside else FAILED if outside else UNDECIDED
    needed = needed_of(value, error, n, limits, policy["alpha"], policy["power"]) if outcome == UNDECIDED else None
    return replace(
        check, outcome=outcome, value=figure[0], low=back(value - reach), high=back(value + reach), needed=needed
    )


def needed_of(
    value: float, error: float, n: float, limits: Sequence[float | None], alpha: float, power: float
) -> int | None:
    """How many images or processes decide a check with a power, if its figure stays: its error falls as 1 / sqrt(n).

    Args:
        value, error: figure and its standard error from n images or processes; limits: (least or None, most or None).
    """
    distance = min((abs(value - limit) for limit in limits if limit is not None), default=0.0)
    if math.isnan(n) or distance == 0 or error == 0:
        return None
    wanted = distance / float(quantile(1 - alpha, MANY) + quantile(power, MANY))
    return max(int(n) + 1, math.ceil(n * (error / wanted) ** 2))


def _floor(check, row, summary):
    """What the baseline shows against itself, where that is more than the limit allows."""
    metrics = metric_entries.shown()
    if check.check in RATIOS:
        control = f"{RATIOS[check.check].removesuffix('_ratio')}_control"
        if pd.notna(row.get(f"{control}_high")) and row[f"{control}_high"] > (check.most or math.inf):
            return f"the baseline against itself reaches {row[f'{control}_high']:.3g}"
    elif check.check in metrics and not metrics[check.check].paired:
        limit = check.most if check.least is None else -check.least if check.least < 0 else None
        spread = _spread_of_seeds(summary, metrics[check.check].column, row["model"], row["sampling"])
        if limit is not None and spread > limit:
            return f"the baseline itself differs by {spread:.3g} between seeds"
    return None


def _spread_of_seeds(summary, column, model, sampling):
    """Largest difference of the baseline's values under a sampling and its replicates; 0 of fewer than two."""
    # Of arrays: a table of all columns for each check would take longer than the tests themselves.
    of = {name: summary[name].to_numpy() for name in ("model", "sampling", "replicate_of")}
    same = (of["sampling"] == sampling) | (of["replicate_of"] == sampling)
    values = summary[column].to_numpy(float)[summary["baseline"].to_numpy(bool) & (of["model"] == model) & same]
    values = values[~np.isnan(values)]
    return float(np.ptp(values)) if len(values) > 1 else 0.0


def outcome_of(checks: Sequence[Check]) -> str:
    """FAILED if a check failed, else UNDECIDED if one is undecided or there is none, else PASSED."""
    outcomes = {check.outcome for check in checks} or {UNDECIDED}
    return next(outcome for outcome in (FAILED, UNDECIDED, PASSED) if outcome in outcomes)


def as_json(checks: Sequence[Check], policy: Mapping[str, Any]) -> dict[str, Any]:
    return {"outcome": outcome_of(checks), "policy": dict(policy), "checks": list(map(asdict, checks))}


def as_markdown(checks: Sequence[Check], policy: Mapping[str, Any]) -> str:
    """A table for a pull request: the failed checks first."""
    order = sorted(checks, key=lambda check: (FAILED, UNDECIDED, PASSED).index(check.outcome))
    counts = {outcome: sum(check.outcome == outcome for check in checks) for outcome in (PASSED, FAILED, UNDECIDED)}
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    rows = []
    for one in order:
        limits = [
            f"{word} {limit:g}" for word, limit in (("at least", one.least), ("at most", one.most)) if limit is not None
        ]
        unit = "processes" if one.check in RATIOS else "images"
        notes = [one.note] if one.note else []
        notes += [f"decided by about {one.needed:,} {unit}"] if one.needed else []
        figure = markdown.figure(one.value, one.low, one.high)
        named = (one.outcome, one.model, one.sampling, one.method, one.check)
        rows.append((*named, figure, ", ".join(limits), "; ".join(notes)))
    title = f"**quantwatt gate: {outcome_of(checks)}** ({told}; alpha {policy['alpha']:g} for each method)"
    heads = ("", "model", "sampling", "method", "check", "figure", "limit", "")
    return "\n".join([title, "", *markdown.table(heads, rows)]) + "\n"
