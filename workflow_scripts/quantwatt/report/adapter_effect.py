"""How much of an adapter's own effect a method keeps, from distances between images of the same prompt and seed.

The effect is the distance of the unquantized images without the adapter from those with it. What a method loses is the
distance of its images from the latter. Distances are root mean squares over the pixels of all images, from their PSNR.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from quantwatt.intervals import RESAMPLES, bootstrap_ratios
from quantwatt.report.cells import Cell

COLUMNS = [*"model method sampling adapters without n_images kept kept_low kept_high".split()]
METRIC = "psnr"


def adapters_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row for every cell of a model with adapters, with COLUMNS.

    `kept` is 1 - the distance lost over the effect, with an interval by a bootstrap of images: 1 keeps all of it, 0 is
    as far from it as the model without the adapter, and less is farther. `without` is the method that has none. A model
    without an unquantized method with `adapters: none`, or without PSNR, has no rows.
    """
    rows = []
    for cell in cells:
        mode = _mode(cell)
        without = next((other for other in cells if _is_reference(other, cell)), None)
        if without is None or cell is without:
            continue
        lost, effect = _squares(cell), _squares(without)
        if lost is None or effect is None or len(lost) != len(effect) or not effect.sum():
            continue
        figures = bootstrap_ratios(lost[:, None], effect, lambda ratios: 1 - np.sqrt(ratios[..., 0]), RESAMPLES)
        rows.append([cell.model, cell.method, cell.sampling, mode, without.method, len(lost), *map(float, figures)])
    return pd.DataFrame(rows, columns=COLUMNS)


def _mode(cell):
    settings = cell.checkpoint.get("settings") or {}
    return settings.get("adapters", "kept" if "checkpoint" in settings else "fused")


def _is_reference(other, cell):
    """Whether a cell is the unquantized model without its adapters, of another cell's model and sampling."""
    same = (other.model, other.sampling) == (cell.model, cell.sampling)
    return same and _mode(other) == "none" and not other.checkpoint.get("layers")


def _squares(cell):
    """Mean squared errors of the images, relative to white; None without PSNR."""
    values = (cell.scores.get(METRIC) or {}).get("values")
    return None if values is None else 10 ** (-np.asarray(values, np.float64) / 10)
