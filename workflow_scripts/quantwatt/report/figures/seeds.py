"""Scores with intervals per method and seed: how much another seed changes.

Methods so much worse than the others that these would shrink to dots stand at the edge, with an arrow and their mean.
"""

import numpy as np
from matplotlib.figure import Figure

from quantwatt.report import labels
from quantwatt.report.clipping import far_worse
from quantwatt.report.figures import GREY, GRID, INK, NARROW, PALE, WIDE, Inputs, method_colours, sentence
from quantwatt.report.tables import by_seed

LANE, EDGE = 0.3, 0.9  # inches: a method's height, and a panel's margins


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """Methods are ordered by their mean, the best first; a band spans the intervals of all seeds of a method."""
    panels = by_seed(inputs.summary)
    if not panels:
        return sentence("No two samplings differ only by their seed.", narrow)
    lanes = [rows["method"].nunique() * LANE for *_, rows in panels]
    width, height = NARROW if narrow else WIDE, sum(lanes) + EDGE * len(panels)
    figure, top, colours = Figure(figsize=(width, height), dpi=100), height, method_colours(inputs.summary)
    size = 7 if narrow else 9
    left = 0.2 + max(labels.width(method, size) for method in set(inputs.summary["method"]))
    for (model, sampling, metric, rows), lane in zip(panels, lanes, strict=True):
        top -= lane + EDGE
        axes = figure.add_axes((left / width, (top + 0.5) / height, 1 - (left + 0.15) / width, lane / height))
        _panel(axes, rows, metric, {method: colours[model, method] for method in rows["method"]}, size)
        seeds = ", ".join(f"{seed:g}" for seed in dict.fromkeys(rows["seed"]))
        axes.set_title(
            f"{model} · {sampling}, seeds {seeds} from above",
            x=(0.1 - left) / (width - left - 0.15),
            fontsize=8.5 if narrow else 9.5,
        )
        axes.set_xlabel(metric.name + (f" ({metric.unit})" if metric.unit else ""))
    return figure


def _panel(axes, rows, metric, colours, size):
    column, sign = metric.column, 1 if metric.higher_is_better else -1
    far, low, high = far_worse(rows, metric)
    room = 0.04 * ((high - low) or 1.0)
    axes.set_xlim(low - room, high + room)
    edge = axes.get_xlim()[0 if metric.higher_is_better else 1]
    methods, seeds = list(dict.fromkeys(rows["method"])), list(dict.fromkeys(rows["seed"]))
    offsets = np.linspace(-0.25, 0.25, len(seeds))
    for line, method in enumerate(methods):
        scores = rows[rows["method"] == method]
        axes.text(-0.012, line, method, color=colours[method], ha="right", va="center", fontsize=size,
                  transform=axes.get_yaxis_transform())  # fmt: skip
        if method in far:
            axes.plot(edge, line, marker=">" if sign < 0 else "<", markersize=7, color=colours[method], clip_on=False)
            axes.annotate(labels.digits(scores[column].mean()), (edge, line), (8 * sign, 0), va="center", fontsize=size,
                          textcoords="offset points", ha="left" if sign > 0 else "right")  # fmt: skip
            continue
        low, high = scores[[f"{column}_low", column]].min().min(), scores[[f"{column}_high", column]].max().max()
        axes.fill_betweenx([line - 0.42, line + 0.42], low, high, color=PALE, alpha=0.5, linewidth=0, zorder=1)
        for _, row in scores.iterrows():
            y = line + offsets[seeds.index(row["seed"])]
            axes.plot([row[f"{column}_low"], row[f"{column}_high"]], [y, y], color=colours[method], linewidth=1.3)
            axes.plot(row[column], y, marker="o", markersize=3.2, color=colours[method])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(colors=GREY, labelcolor=INK)
    axes.grid(axis="x", color=GRID, zorder=0)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
