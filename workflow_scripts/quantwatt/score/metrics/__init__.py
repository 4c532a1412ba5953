"""Metrics, loaded by `registry.load("metrics", NAME)`.

A metric's module has

    UNIT, PACKAGE                     of its value, and the library that computes it
    score(samples, compared, resamples=None, seed=0) -> Score
    change(samples, baseline, compared, resamples=None, seed=0) -> Score     from the baseline's, drawn in pairs; not
                                      where the score itself compares with the baseline

What these are given, and how the metric is shown, its schema says: see `quantwatt.config.metric_entries`.
"""

from typing import NamedTuple


class Score(NamedTuple):
    """A figure and its 95 % interval; the bounds are NaN where `reason` says why there is none."""

    value: float
    low: float
    high: float
    resamples: int
    reason: str | None = None


class Undefined(Exception):
    """The metric has no value for such a sample; the message is one sentence for the report."""
