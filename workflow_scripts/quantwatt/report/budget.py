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
    sentences = []
    if better or others:
        verb = "is" if len(better) == 1 else "are"
        lead = f"{len(better)} of {len(better + others)} mixed methods {verb}" if better else "No mixed method is"
        sentences.append(
            f"{lead} significantly better (intervals apart) in {metric.name} than the best uniform method of as many "
            f"average bits or the next more{': ' if better else ''}{'; '.join(better)}."
        )
    sentences += [f"Not better: {'; '.join(others)}."] if others else []
    sentences += [f"No uniform method has as many bits as {listed(alone)}."] if alone else []
    return " ".join(sentences)


def _scored(row, metric):
    values = (row[f"{metric.column}{end}"] for end in ("", "_low", "_high"))
    return f"{row['method']} ({_bits(row)} bits), {with_bounds(*values, unit=metric.unit)}"


def _bits(row):
    return f"{compact(row['weight_bits'])} / {compact(row['activation_bits'])}"
