"""Scores by the category of the prompt, of metrics that are means over images."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from quantwatt.data import prompts
from quantwatt.intervals import RESAMPLES, bootstrap_ratios
from quantwatt.report.cells import Cell

COLUMNS = [*"model method sampling metric category n_images value low high".split()]


def categories_table(cells: Sequence[Cell], samplings: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row for every cell, metric and category, with COLUMNS.

    Args:
        cells: as of `cells.read_cells`, with the values of images.
        samplings: {name: settings}; those without prompts or categories have no rows.
    Returns:
        value, low and high are the metric's mean over the category's images and its interval by a bootstrap of them;
        the bounds are NaN for a single image.
    Raises:
        DataError: a file of prompts cannot be read.
    """
    files = {name: entry["prompts"] for name, entry in samplings.items() if entry.get("prompts")}
    known = {name: found for name, path in files.items() if (found := prompts.categories(path))}
    rows = [row for cell in cells if cell.sampling in known for row in _rows(cell, known[cell.sampling])]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(cell, known) -> Iterator[dict[str, Any]]:
    named = {"model": cell.model, "method": cell.method, "sampling": cell.sampling}
    for metric, score in cell.scores.items():
        if (values := score.get("values")) is None:
            continue
        of_image = np.resize(known, len(values))  # prompts are taken again from the first
        weights = score.get("weights")
        weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
        for category in dict.fromkeys(of_image):
            chosen = (of_image == category) & (weights > 0)  # a weight of 0: the prompt does not ask for it
            if chosen.any():
                figures = _mean(np.asarray(values)[chosen], weights[chosen], score.get("log_values"))
                yield named | {"metric": metric, "category": category, "n_images": int(chosen.sum())} | figures


def _mean(values, weights, logs):
    def value_of(ratios):
        return np.exp(ratios[..., 0]) if logs else ratios[..., 0]

    figures = bootstrap_ratios((values * weights)[:, None], weights, value_of, RESAMPLES)
    return dict(zip(("value", "low", "high"), map(float, figures), strict=True))
