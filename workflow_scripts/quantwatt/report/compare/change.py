"""A figure that is held against another one, and what is told of the two."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from quantwatt.report import holm, independent, tables
from quantwatt.report.tables import BETTER, EQUAL, UNDECIDED, WORSE

LOST, GAINED, NOT_COMPARED = "lost", "gained", "not compared"
ALPHA = 0.05  # largest chance that nothing got worse and one of all figures is called a regression


@dataclass(frozen=True)
class Change:
    """One figure of two methods, or of one method in two results.

    before, after: the two figures. value, low, high: `after` minus `before`, or over it where `is_ratio`, with its 95 %
    interval; None where there is none.
    verdict: BETTER, WORSE, EQUAL or UNDECIDED by the interval; LOST or GAINED where one side has none; NOT_COMPARED.
    chance: the p-value of a change for the worse beyond what is tolerated; None where it does not count.
    regression: whether it is told to be worse by more than is tolerated, all figures considered.
    note: what to know beside it.
    """

    model: str
    sampling: str
    method: str
    figure: str
    verdict: str
    before: float | None = None
    after: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    is_ratio: bool = False
    chance: float | None = None
    regression: bool = False
    note: str | None = None


def told(
    change: Change,
    interval: Sequence[float],
    worse: int,
    margin: float,
    tolerated: float | None,
    degrees: float = independent.MANY,
    drawn: bool = False,
) -> Change:
    """The Change with its interval, its verdict and its chance.

    Args:
        interval: (value, low, high) of the difference or ratio; without bounds (NaN) nothing is told.
        worse: 1 where more is worse, -1 where less is.
        margin: largest difference, or distance of a ratio from 1, that is called EQUAL.
        tolerated: change for the worse, in the same way, that is no regression; None: it does not count.
        degrees: of freedom of the interval.
        drawn: whether it is a bootstrap's, which is as narrow as a normal distribution's however few values there are.
    """
    value, low, high = (float(bound) for bound in interval)
    change = replace(change, value=value if math.isfinite(value) else None)
    if math.isnan(low) or math.isnan(high):
        if change.before == change.after:
            return replace(change, verdict=EQUAL, chance=None if tolerated is None else 1.0)
        return replace(change, verdict=NOT_COMPARED, note=change.note or "it has no interval")
    change = replace(change, low=low, high=high)
    if change.is_ratio and tables.is_noisy(low, high):
        return replace(change, verdict=tables.TOO_NOISY)
    scale = math.log if change.is_ratio else float
    zero, ends = (1.0, (1 - margin, 1 + margin)) if change.is_ratio else (0.0, (-margin, margin))
    verdict = BETTER if (value > zero) == (worse < 0) else WORSE
    if ends[0] <= low and high <= ends[1]:
        verdict = EQUAL
    elif low <= zero <= high:
        verdict = UNDECIDED
    change = replace(change, verdict=verdict)
    if tolerated is None:
        return change
    bound = math.log1p(tolerated) if change.is_ratio else tolerated
    error = independent.standard_error(scale(low), scale(high), independent.MANY if drawn else degrees)
    return replace(change, chance=float(independent.p_above(worse * scale(value), bound, error, degrees)))


def with_regressions(changes: Iterable[Change], alpha: float = ALPHA) -> list[Change]:
    """Mark regressions, by Holm's step-down test of all chances, the exact ones (0) apart from it.

    So the chance that any figure is called a regression where none got worse by more than is tolerated is at most
    `alpha`, however many figures there are and however they depend on each other.
    """
    changes = list(changes)
    chances = {i: change.chance for i, change in enumerate(changes) if change.chance is not None and change.chance < 1}
    marked = {i for i, chance in chances.items() if chance == 0}
    tested = {i: chance for i, chance in chances.items() if chance > 0}
    left = holm.adjusted(list(tested.values()))
    marked |= {i for i, chance in zip(tested, left, strict=True) if chance <= alpha}
    return [replace(change, regression=change.regression or i in marked) for i, change in enumerate(changes)]
