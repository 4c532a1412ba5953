"""Quality by number of denoising steps, with all other settings equal: a line with intervals per method.

A method so much worse than the others that these would be one line has its name and last value at the edge.
"""

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from quantwatt.report import labels
from quantwatt.report.clipping import far_worse
from quantwatt.report.figures import (
    GREY,
    GRID,
    INK,
    NARROW,
    Inputs,
    axes_at,
    family,
    method_colours,
    quality_title,
    sentence,
)
from quantwatt.report.tables import by_steps

WIDTH, HEIGHT = 10.6, 3.4  # inches; a panel is taller where it has more names than fit beside it
NAME = 0.14  # inches: a name's height
MOST = 3  # number of metrics shown
LEFT, ABOVE, BELOW, TITLE = 0.55, 0.3, 0.5, 0.35  # inches: margins of a panel, and a model's title
STROKES = (
    "-",
    (0, (4, 1.5)),
    (0, (1, 1.2)),
    (0, (6, 1.5, 1, 1.5)),
)  # of methods with the same solver's colour
LOG_FROM = 12  # the y axis is logarithmic from this ratio of largest to smallest distance


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """A row of panels per model (a column in the narrow layout): one metric per panel, FID first."""
    sweeps = by_steps(inputs.summary)
    if not sweeps:
        return sentence("No two samplings differ only by their number of steps.", narrow)
    width, colours, size = NARROW if narrow else WIDTH, method_colours(inputs.summary), 7.5
    sweeps = [(model, sampling, metrics[:MOST], rows) for model, sampling, metrics, rows in sweeps]
    panels = [max(HEIGHT, ABOVE + BELOW + NAME * rows["method"].nunique()) for *_, rows in sweeps]
    heights = [TITLE + panel * (len(metrics) if narrow else 1)
               for (*_, metrics, _), panel in zip(sweeps, panels, strict=True)]  # fmt: skip
    figure = Figure(figsize=(width, sum(heights)), dpi=100)
    top = height = figure.get_figheight()
    for (model, sampling, metrics, rows), panel, row_height in zip(sweeps, panels, heights, strict=True):
        names = list(dict.fromkeys(rows["method"]))
        far = {name for metric in metrics for name in _limits(rows, metric)[-1]}
        name_width = 0.3 + max(labels.width(f"{name}: 0.000" if name in far else name, size) for name in names)
        slot = width if narrow else width / len(metrics)
        figure.text(0.1 / width, (top - 0.2) / height, f"{model} · {sampling} and more steps", fontsize=10,
                    fontweight="bold", color=GREY, va="center")  # fmt: skip
        for i, metric in enumerate(metrics):
            x, down = (0, i) if narrow else (i * slot, 0)
            y = top - TITLE - (down + 1) * panel + BELOW
            box = x + LEFT, y, slot - LEFT - name_width, panel - ABOVE - BELOW
            axes = axes_at(figure, box)
            _panel(axes, rows, metric, {name: colours[model, name] for name in names}, size)
        top -= row_height
    return figure


def _panel(axes, rows, metric, colours, size):
    column, steps = metric.column, list(dict.fromkeys(rows["steps"]))
    strokes = _strokes(rows)
    shown = [name for name in colours if rows.loc[rows["method"] == name, column].notna().any()]
    offsets = np.linspace(-0.16, 0.16, len(shown)) if len(shown) > 1 else [0]
    axes.set_xlim(-0.35, len(steps) - 0.65)
    log, low, high, far = _limits(rows, metric)
    _scale(axes, log, low, high)
    ends, names = [], []
    for name, offset in zip(shown, offsets, strict=True):
        scores = rows[(rows["method"] == name) & rows[column].notna()]
        x, y = [steps.index(count) + offset for count in scores["steps"]], scores[column].to_numpy(float)
        axes.plot(x, y, color=colours[name], linestyle=strokes[name], linewidth=1.3, marker="o", markersize=3.4,
                  label=name, zorder=4 if scores["baseline"].any() else 3)  # fmt: skip
        axes.vlines(x, scores[f"{column}_low"], scores[f"{column}_high"], color=colours[name], linewidth=1.2, alpha=0.7)
        ends.append((x[-1], np.clip(y[-1], *sorted(axes.get_ylim()))))
        names.append(f"{name}: {labels.digits(y[-1])}" if name in far else name)
    labels.column(axes, ends, names, [colours[name] for name in shown], size)
    quality_title(axes, metric, rows)
    axes.set_xticks(range(len(steps)), [f"{count:g}" for count in steps])
    axes.set_xlabel("steps")
    axes.tick_params(labelsize=8, colors=GREY, labelcolor=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)


def _strokes(rows):
    """{method: line style}; methods of the same colour get different styles, until the styles repeat."""
    seen, strokes = {}, {}
    for _, row in rows.drop_duplicates("method").iterrows():
        seen[family(row)] = seen.get(family(row), -1) + 1
        strokes[row["method"]] = STROKES[seen[family(row)] % len(STROKES)]
    return strokes


def _limits(rows, metric):
    """(whether the axis is logarithmic, its lowest and highest value, the methods that are beyond)."""
    values = rows[[metric.column, f"{metric.column}_low", f"{metric.column}_high"]].to_numpy(float)
    low, high = np.nanmin(values), np.nanmax(values)
    if not metric.higher_is_better and low > 0 and high / low > LOG_FROM:
        return True, low, high, set()
    far, low, high = far_worse(rows, metric)
    return False, low, high, far


def _scale(axes, log, low, high):
    """Set the y axis' limits and ticks."""
    if log:
        axes.set_yscale("log")
        axes.set_ylim(low / (high / low) ** 0.06, high * (high / low) ** 0.06)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        room = 0.07 * ((high - low) or abs(high) or 1.0)
        axes.set_ylim(low - room, high + room)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(6))
