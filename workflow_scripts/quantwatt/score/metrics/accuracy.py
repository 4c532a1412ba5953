"""Accuracy: share of correct predictions, of labels of sentences or next tokens of running text."""

from collections.abc import Mapping, Sequence
from typing import Any

from quantwatt.intervals import RESAMPLES, bootstrap_ratios
from quantwatt.score.metrics import OfItems, Score
from quantwatt.score.predictions import column, require_judged

UNIT = "1"
PACKAGE = "numpy"


def score(
    samples: Sequence[Mapping[str, Any]], compared: None = None, resamples: int | None = None, seed: int = 0
) -> Score:
    """Correct predictions over all predictions; the interval is a bootstrap of items (sentences, windows).

    Args:
        samples: items of `quantwatt.score.predictions`.
        resamples: bootstrap resamples (10000).
    Raises:
        Undefined: the texts have no labels.
    """
    require_judged(samples)
    right, tokens = column(samples, "correct"), column(samples, "tokens")
    return _bootstrap(right, samples, resamples, seed)._replace(of_items=OfItems(right / tokens, tokens))


def change(
    samples: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    compared: None = None,
    resamples: int | None = None,
    seed: int = 0,
) -> Score:
    """Accuracy minus the baseline's on the same items, with a paired bootstrap; arguments as for `score`."""
    require_judged(samples)
    return _bootstrap(column(samples, "correct") - column(baseline, "correct"), samples, resamples, seed)


def _bootstrap(right, counted, resamples, seed):
    resamples = RESAMPLES if resamples is None else resamples
    shares = bootstrap_ratios(right[:, None], column(counted, "tokens"), lambda r: r[..., 0], resamples, seed)
    return Score(*shares, resamples)
