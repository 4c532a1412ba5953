"""Metrics, loaded by `registry.load("metrics", NAME)`.

The schema of a metric defines its inputs and how it is shown: see `quantwatt.config.metric_entries`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from quantwatt.intervals import RESAMPLES, bootstrap_mean


class OfItems(NamedTuple):
    """The values of single images or items, in the order of the samples, whose weighted mean is a score's value.

    values: [n], finite.
    weights: [n], such as numbers of tokens; None: all alike.
    logs: whether `values` are natural logarithms, and the score exp(mean), as of perplexity.
    """

    values: np.ndarray
    weights: np.ndarray | None = None
    logs: bool = False


class Score(NamedTuple):
    """A value and its 95 % interval; without an interval the bounds are NaN and `reason` says why.

    A metric that is a mean over images or items gives `of_items`, too: from these the worst images are found, and two
    methods are compared in pairs, without computing the metric again. `by_step`: (value, low, high) of every denoising
    step, of a metric that compares trajectories.
    """

    value: float
    low: float
    high: float
    resamples: int
    reason: str | None = None
    of_items: OfItems | None = None
    by_step: tuple[tuple[float, float, float], ...] | None = None


class Metric(Protocol):
    """The interface of a metric's module."""

    UNIT: str  # of the value
    PACKAGE: str  # the library that computes it

    def score(self, samples: Any, compared: Any, resamples: int | None = None, seed: int = 0) -> Score:
        """The value of a sample, such as images, features or predictions.

        Raises:
            Undefined: the metric has no value for this sample.
        """

    def change(self, samples: Any, baseline: Any, compared: Any, resamples: int | None = None, seed: int = 0) -> Score:
        """The difference from the baseline's value, with a paired bootstrap.

        A metric whose `score` already compares with the baseline does not define it.
        """


def mean_over_images(values: Sequence[float] | np.ndarray, resamples: int | None = None, seed: int = 0) -> Score:
    """The score that is the mean of one value per image, with a bootstrap over images.

    Args:
        values: [n], finite.
        resamples: bootstrap resamples (10000).
    """
    resamples = RESAMPLES if resamples is None else resamples
    values = np.asarray(values, np.float64)
    return Score(*bootstrap_mean(values, resamples, seed), resamples, of_items=OfItems(values))


class Undefined(Exception):
    """The metric has no value for this sample; the message is one sentence for the report."""
