"""Whether mixed methods (a format per layer) are better than uniform methods with as many average bits."""

from typing import Any

import pandas as pd

from quantwatt.report.mixed_precision import against_uniform, with_mixed
from quantwatt.report.page.numbers import listed


def budget_comparisons(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Mixed methods against uniform ones, one mapping per model, sampling and device with mixed methods.

    Returns:
        list of {"title", "metric": Metric, "sentence", "rows": as of `comparisons.against_uniform`}.
    """
    comparisons = []
    for title, metric, rows in with_mixed(summary):
        compared = against_uniform(rows, metric)
        text = _sentence(compared, metric)
        comparisons.append({"title": title, "metric": metric, "sentence": text, "rows": compared})
    return comparisons


def _sentence(compared, metric):
    """Which mixed methods are better than the best uniform method with as many bits, and which are not."""
    alone = [row["method"] for row, other, _ in compared if other is None]
    better = [row["method"] for row, _, is_better in compared if is_better]
    others = [row["method"] for row, other, is_better in compared if other is not None and not is_better]
    than = f"significantly better (intervals apart) in {metric.name} than the best uniform method"
    than += " with as many average bits, or the next larger number"
    sentences = []
    if better:
        rest = f"; {listed(others)} {_is(others)} not" if others else ""
        sentences = [f"{listed(better)} {_is(better)} {than}{rest}."]
    elif others:
        sentences = [f"No mixed method is {than}."]
    if alone:
        sentences.append(f"No uniform method has as many average bits as {listed(alone)}.")
    return " ".join(sentences)


def _is(names):
    return "is" if len(names) == 1 else "are"
