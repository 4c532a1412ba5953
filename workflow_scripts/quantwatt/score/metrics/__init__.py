"""Metrics, loaded by `registry.load("metrics", NAME)`.

What a metric is given, and how it is shown, its schema says: see `quantwatt.config.metric_entries`.
"""

from typing import Any, NamedTuple, Protocol


class Score(NamedTuple):
    """A figure and its 95 % interval; the bounds are NaN where `reason` says why there is none."""

    value: float
    low: float
    high: float
    resamples: int
    reason: str | None = None


class Metric(Protocol):
    """What a metric's module offers."""

    UNIT: str  # of its value
    PACKAGE: str  # the library that computes it

    def score(self, samples: Any, compared: Any, resamples: int | None = None, seed: int = 0) -> Score:
        """The figure of a sample, such as images, features or predictions.

        Raises:
            Undefined: there is none of such a sample.
        """

    def change(self, samples: Any, baseline: Any, compared: Any, resamples: int | None = None, seed: int = 0) -> Score:
        """The difference from the baseline's figure, drawn in pairs.

        The module of a metric that itself compares with the baseline has none.
        """


class Undefined(Exception):
    """The metric has no value for such a sample; the message is one sentence for the report."""
