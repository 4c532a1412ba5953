"""Perplexity: exp of the mean negative log-likelihood of the targets (tokens of text, or labels)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quantwatt.intervals import RESAMPLES, bootstrap_ratios
from quantwatt.score.metrics import OfItems, Score
from quantwatt.score.predictions import column, require_judged

UNIT = "1"
PACKAGE = "numpy"


def score(
    samples: Sequence[Mapping[str, Any]], compared: None = None, resamples: int | None = None, seed: int = 0
) -> Score:
    """Perplexity over all tokens; the interval is a bootstrap of items (windows, sentences).

    Args:
        samples: items of `quantwatt.score.predictions`.
        resamples: bootstrap resamples (10000).
    Raises:
        Undefined: the texts have no labels.
    """
    require_judged(samples)
    found = _bootstrap([samples], samples, lambda nats: np.exp(nats[..., 0]), resamples, seed)
    tokens = column(samples, "tokens")
    return found._replace(of_items=OfItems(column(samples, "nll") / tokens, tokens, logs=True))


def change(
    samples: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    compared: None = None,
    resamples: int | None = None,
    seed: int = 0,
) -> Score:
    """Perplexity minus the baseline's on the same items, with a paired bootstrap; arguments as for `score`."""
    require_judged(samples)
    return _bootstrap(
        [samples, baseline], samples, lambda nats: np.exp(nats[..., 0]) - np.exp(nats[..., 1]), resamples, seed
    )


def _bootstrap(sets, counted, value_of, resamples, seed):
    resamples = RESAMPLES if resamples is None else resamples
    nll = np.stack([column(items, "nll") for items in sets], axis=1)  # [items, sets]
    with np.errstate(over="ignore"):  # a broken model's perplexity may be infinite
        return Score(*bootstrap_ratios(nll, column(counted, "tokens"), value_of, resamples, seed), resamples)
