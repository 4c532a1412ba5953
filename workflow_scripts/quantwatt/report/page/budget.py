"""Whether mixed methods (a format per layer or step) are better than uniform methods at equal bits or joules."""

from typing import Any

import pandas as pd

from quantwatt.report.mixed_precision import against_uniform, at_equal_joules, with_mixed
from quantwatt.report.page.numbers import listed
from quantwatt.report.tables import BETTER, UNDECIDED, WORSE


def budget_comparisons(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Mixed methods against uniform ones, one mapping per model, sampling and device with mixed methods.

    Returns:
        list of {"title", "metric": Metric, "sentence", "joules": sentence, "rows": as of
        `mixed_precision.against_uniform`}.
    """
    comparisons = []
    for title, metric, rows in with_mixed(summary):
        compared = against_uniform(rows, metric)
        text = _sentence(compared, metric)
        joules = _of_joules(at_equal_joules(rows, metric), [row["method"] for row, *_ in compared], metric)
        comparisons.append({"title": title, "metric": metric, "sentence": text, "joules": joules, "rows": compared})
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


def _of_joules(compared, every, metric):
    """What mixed methods buy against the best uniform method of as many joules or fewer, where that is known."""
    found = {}
    for row, other, verdict in compared:
        found.setdefault(None if other is None else verdict, []).append(row["method"])
    against = f"in {metric.name} than the best uniform method of as many joules or fewer"
    sentences = []
    for verdict, word in ((BETTER, "better"), (WORSE, "worse")):
        if names := found.get(verdict):
            sentences.append(f"{listed(names)} {_is(names)} significantly {word} (intervals apart) {against}.")
    if names := found.get(UNDECIDED):
        sentences.append(f"{listed(names)} {_is(names)} not told apart {against.replace(' than ', ' from ')}.")
    if names := [row["method"] for row, other, _ in compared if other is None]:
        sentences.append(f"No uniform method takes as few joules as {listed(names)}.")
    told = {row["method"] for row, *_ in compared}
    if names := [name for name in every if name not in told]:
        sentences.append(
            f"Of {listed(names)} nothing is told at equal joules: {_its(names)} energy was not measured here."
        )
    return " ".join(sentences)


def _its(names):
    return "its" if len(names) == 1 else "their"


def _is(names):
    return "is" if len(names) == 1 else "are"
