"""The published figures of an experiment's protocol, beside its own unquantized model."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from quantwatt.report import tables


def beside(published: Iterable[Mapping[str, Any]], summary: pd.DataFrame) -> list[dict[str, Any]]:
    """The published figures, each with the methods' own values of its sampling and metric.

    Args:
        published: {"model", "method", "sampling", "metric", "value"}, as of a protocol's file.
        summary: the table of all cells.
    Returns:
        the same with "title" and "unit" of the metric, and "own": [(method, value, low, high)] in the summary's order.
    """
    rows = []
    for figure in published:
        metric = tables.METRICS[figure["metric"]]
        columns = [f"{metric.column}{end}" for end in ("", "_low", "_high")]
        cells = summary[summary["sampling"] == figure["sampling"]].reindex(columns=["method", *columns])
        own = [tuple(row) for row in cells.dropna(subset=columns[:1]).itertuples(index=False)]
        rows.append({**figure, "title": metric.title, "unit": metric.unit, "own": own})
    return rows
