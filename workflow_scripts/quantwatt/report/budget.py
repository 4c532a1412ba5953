"""Whether formats chosen layer by layer are better than one format for all layers of as many bits, in one sentence."""

from quantwatt.budgets import against_uniform, with_mixed
from quantwatt.report.numbers import compact, listed, with_bounds


def budget_sentences(summary):
    """[(title, sentence)] of every model, sampling and device with mixed methods."""
    return [(title, _sentence(rows, metric)) for title, metric, rows in with_mixed(summary)]


def _sentence(rows, metric):
    better, others, alone = [], [], []
    for row, other, is_better in against_uniform(rows, metric):
        if other is None:
            alone.append(f"{row['method']} ({_bits(row)} bits)")
        else:
            text = f"{_scored(row, metric)} against {_scored(other, metric)}"
            (better if is_better else others).append(text)
    total = len(better) + len(others) + len(alone)
    verb = "is" if len(better) == 1 else "are"
    text = (
        f"{len(better) or 'None'} of {total} mixed {'method' if total == 1 else 'methods'} {verb} significantly better "
        f"(intervals apart) in {metric.name} than the best uniform method of as many average bits or the next more"
    )
    parts = [f": {'; '.join(better)}"] if better else []
    parts += [f". Not better: {'; '.join(others)}"] if others else []
    parts += [f". No uniform method has as many bits as {listed(alone)}"] if alone else []
    return text + "".join(parts) + "."


def _scored(row, metric):
    values = (row[f"{metric.column}{end}"] for end in ("", "_low", "_high"))
    return f"{row['method']} ({_bits(row)} bits), {with_bounds(*values, unit=metric.unit)}"


def _bits(row):
    return f"{compact(row['weight_bits'])} / {compact(row['activation_bits'])}"
