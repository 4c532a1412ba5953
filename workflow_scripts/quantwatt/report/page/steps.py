"""The effect of more denoising steps: a table of scores, and for how many methods more steps did not help."""

from typing import Any

import pandas as pd

from quantwatt.report.page.numbers import compact, listed
from quantwatt.report.tables import BETTER, UNDECIDED, WORSE, by_steps, compare


def step_tables(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Tables of one metric for samplings that differ only by their number of steps.

    The metric is the first unpaired one with intervals, else the first unpaired one: a paired metric compares with
    baseline images that change with the number of steps, too. Without unpaired metrics it is the first paired one.

    Returns:
        list of {"title", "metric": Metric, "steps", "rows": [(method, [(value, low, high) or None per number of
        steps])], "sentence"}.
    """
    comparisons = []
    for model, sampling, metrics, rows in by_steps(summary):
        metric = _metric(metrics, rows)
        names = [f"{metric.column}{end}" for end in ("", "_low", "_high")]
        steps = list(dict.fromkeys(rows["steps"]))
        lines = []
        for method, method_rows in rows[rows[metric.column].notna()].groupby("method", sort=False):
            scores = {count: values for count, *values in method_rows[["steps", *names]].itertuples(index=False)}
            lines.append((method, [scores.get(count) for count in steps]))
        comparisons.append(
            {
                "title": f"{model} · {sampling}",
                "metric": metric,
                "steps": steps,
                "rows": lines,
                "sentence": _sentence(rows, metric, steps),
            }
        )
    return comparisons


def _metric(metrics, rows):
    unpaired = [metric for metric in metrics if not metric.paired]
    with_interval = [metric for metric in unpaired if rows[f"{metric.column}_low"].notna().any()]
    return next(iter(with_interval or unpaired or metrics))


def _sentence(rows, metric, steps):
    """A sentence: for how many methods the most steps are not better than the fewest, by disjoint intervals.

    If no method has intervals, the sentence names the methods whose value is not better.
    """
    if metric.paired:
        return (
            f"The {metric.name} cannot show whether more steps help: each number of steps is compared with "
            "unquantized images of the same number of steps."
        )
    verdicts, no_better = {}, []
    for method, method_rows in rows.groupby("method", sort=False):
        ends = {count: row for count, (_, row) in zip(method_rows["steps"], method_rows.iterrows(), strict=True)}
        if steps[0] in ends and steps[-1] in ends:
            verdicts.setdefault(compare(ends[steps[-1]], ends[steps[0]], metric), []).append(method)
            least, most = (ends[count][metric.column] for count in (steps[0], steps[-1]))
            if pd.notna(least) and pd.notna(most) and (most <= least if metric.higher_is_better else most >= least):
                no_better.append(method)
    verdicts.pop(None, None)  # no interval at the fewest or at the most steps
    total, helped, worse = sum(map(len, verdicts.values())), verdicts.get(BETTER, []), verdicts.get(WORSE, [])
    fewest, most = compact(steps[0]), compact(steps[-1])
    if not total:
        return (
            f"No method has an interval of the {metric.name} both at {fewest} and at {most} steps; by the figures "
            f"alone it is no better at {most} for {listed(no_better) if no_better else 'none'}."
        )
    if len(helped) == total:
        return f"More steps helped all {total} methods: the {metric.name} at {most} is better than at {fewest}."
    parts = [f"is worse for {listed(worse)}"] if worse else []
    if verdicts.get(UNDECIDED):
        parts.append(f"has intervals that overlap for {listed(verdicts[UNDECIDED])}")
    parts += [f"is better for {listed(helped)}"] if helped else []
    return (
        f"More steps did not help {total - len(helped)} of {total} methods: the {metric.name} at {most} steps, against "
        f"{fewest}, {'; '.join(parts)}."
    )
