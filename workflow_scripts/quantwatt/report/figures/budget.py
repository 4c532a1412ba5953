"""Quality against each cost: mixed methods (diamonds), uniform methods by their bits, and the hull of these."""

import itertools

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure

from quantwatt.report import labels, marks, scales
from quantwatt.report.figures import GREY, GRID, NARROW, Inputs, axes_at, quality_title, sentence, solver_colours
from quantwatt.report.marks import bars, colour_of, marker
from quantwatt.report.mixed_precision import hull, with_mixed
from quantwatt.report.tables import is_real

WIDTH, HEIGHT = 10.6, 3.7  # inches: the figure's width, a row's height
LEFT, RIGHT, ABOVE, BELOW, TITLE = 0.62, 0.14, 0.3, 0.5, 0.35  # inches: margins of a panel, and a group's title
NOTE = "Named are mixed methods, those on a hull, and others where there is room."
COSTS = {
    "weight_bits": "average bits of a weight",
    "size_mb": "size of the quantized weights (MB)",
    "latency_s": "time per {unit} (s)",
    "energy_j": "energy per {unit} (J)",
}
NAMED = 12  # of more points, mixed methods and those on a hull are named, others where there is room
FLOAT_BITS = 15.5  # a method with more activation bits counts as weight-only
DASHED = (0, (4, 2))
HULLS = {"-": "hull of uniform methods", DASHED: "hull, activations in 16 bit"}  # {line style: text of the key}


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """A group of panels per model, sampling and device with mixed methods: one panel per cost that they have."""
    mixed_groups, width, columns = with_mixed(inputs.summary), NARROW if narrow else WIDTH, 1 if narrow else 2
    if not mixed_groups:
        return sentence("No method's allocation is mixed.", narrow)
    colours = solver_colours(inputs.summary)
    costs = [_costs(rows, metric) for _, metric, rows in mixed_groups]
    keys = [_key(group_costs, metric, colours) for (_, metric, _), group_costs in zip(mixed_groups, costs, strict=True)]
    in_line = 2 if narrow else 6
    many = [any(len(part) > NAMED for part in group_costs.values()) for group_costs in costs]
    belows = [marks.KEY * (-(-len(key) // in_line) + crowd) + 0.2 for key, crowd in zip(keys, many, strict=True)]
    heights = [TITLE + HEIGHT * -(-len(group_costs) // columns) + below
               for group_costs, below in zip(costs, belows, strict=True)]  # fmt: skip
    figure = Figure(figsize=(width, sum(heights)), dpi=100)
    top = height = figure.get_figheight()
    for (title, metric, _), group_costs, key, crowd, below, tall in zip(
        mixed_groups, costs, keys, many, belows, heights, strict=True
    ):
        figure.text(0.1 / width, (top - 0.2) / height, title, fontsize=10, fontweight="bold", color=GREY, va="center")
        for i, (cost, shown) in enumerate(group_costs.items()):
            row, column = divmod(i, columns)
            x, y = column * width / columns + LEFT, top - TITLE - (row + 1) * HEIGHT + BELOW
            box = x, y, width / columns - LEFT - RIGHT, HEIGHT - ABOVE - BELOW
            axes = axes_at(figure, box)
            _panel(axes, shown, cost, metric, colours)
        marks.key(figure, key, 0.1 / width, (top - tall + below) / height, in_line)
        top -= tall
        if crowd:
            figure.text(0.1 / width, (top + 0.16) / height, NOTE, fontsize=7.5, color=GREY, va="center")
    return figure


def _costs(rows, metric):
    """{cost: rows with a value of it and of the metric}, for each cost that a mixed method has."""
    rows_by_cost = {}
    for cost in COSTS:
        rows_of_cost = rows[rows[cost].notna() & rows[metric.column].notna()]
        rows_of_cost = rows_of_cost[is_real(rows_of_cost)] if cost in ("latency_s", "energy_j") else rows_of_cost
        if (rows_of_cost["allocation"] == "mixed").any():
            rows_by_cost[cost] = rows_of_cost
    return rows_by_cost


def _key(rows_by_cost, metric, colours):
    """Handles and texts of what is drawn in any of a group's panels."""
    rows = pd.concat(rows_by_cost.values())
    rows = rows[~rows.index.duplicated()]
    hulls = [found for cost, part in rows_by_cost.items() for found in _hulls(part, metric, cost)]
    drawn = {stroke for corners, stroke in hulls if len(corners) > 1}
    return marks.key_of(rows, colours, {text: stroke for stroke, text in HULLS.items() if stroke in drawn})


def _panel(axes, rows, cost, metric, colours):
    """Draw one scatter plot; better is up and to the left."""
    x, (y, beyond) = rows[cost].to_numpy(float), scales.quality(axes, rows, metric)
    _limits(axes, rows[rows.columns.intersection([cost, f"{cost}_low", f"{cost}_high"])].to_numpy(float))
    boxes = []
    for i, (_, row) in enumerate(rows.iterrows()):
        if not beyond[i]:
            boxes += bars(axes, row, cost, metric.column, x[i], y[i], colours)
        marker(axes, row, x[i], y[i], colours)
        scales.arrow(axes, (x[i], y[i]), (False, beyond[i]), colour_of(row, colours))
    for corners, stroke in _hulls(rows, metric, cost):
        height = rows[metric.column].to_numpy(float)[corners]  # of points at the edge, too: its slope says something
        axes.plot(x[corners], height, color=GREY, linewidth=1, linestyle=stroke, alpha=0.8, zorder=2)
        boxes += _along(x[corners], height)
    important = beyond | (rows["allocation"] == "mixed").to_numpy()
    for corners, _ in _hulls(rows, metric, cost):
        important[corners] = True
    order = np.argsort(~important, kind="stable")
    names = [
        f"{name}: {labels.digits(value)}" if is_beyond else name
        for name, value, is_beyond in zip(rows["method"], rows[metric.column], beyond, strict=True)
    ]
    inks = [colour_of(row, colours) for _, row in rows.iterrows()]
    labels.place(axes, np.column_stack([x, y])[order], [names[i] for i in order], [inks[i] for i in order], boxes,
                 size=7.5, needed=len(rows) if len(rows) <= NAMED else int(important.sum()))  # fmt: skip
    estimated = ", estimated" if cost == "energy_j" and (rows["energy_estimated"] == True).any() else ""  # noqa: E712
    axes.set_xlabel(COSTS[cost].format(unit=rows["unit"].iloc[0]) + estimated)
    quality_title(axes, metric, rows)
    axes.tick_params(labelsize=8)
    axes.grid(color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)


def _hulls(rows, metric, cost):
    """[(indices of rows, line style)]: the hulls of weight-only uniform methods and of the other uniform methods."""
    uniform, alone = (rows["allocation"] == "uniform").to_numpy(), (rows["activation_bits"] > FLOAT_BITS).to_numpy()
    x = rows[cost].to_numpy(float)
    y = rows[metric.column].to_numpy(float) * (1 if metric.higher_is_better else -1)
    hulls = []
    for chosen, stroke in ((uniform & alone, DASHED), (uniform & ~alone, "-")):
        places = np.flatnonzero(chosen)
        if len(places):
            hulls.append((places[hull(np.column_stack([x, y])[places])], stroke))
    return hulls


def _along(x, y):
    """Small boxes (x0, y0, x1, y1) along a line through points, which labels keep clear of."""
    shares = np.linspace(0, 1, 12)
    lines = zip(itertools.pairwise(x), itertools.pairwise(y), strict=True)
    return [
        (p, q, p, q)
        for (x0, x1), (y0, y1) in lines
        for p, q in zip(x0 + shares * (x1 - x0), y0 + shares * (y1 - y0), strict=True)
    ]


def _limits(axes, values):
    """Set the limits of x with room for labels around points and intervals."""
    low, high = np.nanmin(values), np.nanmax(values)
    span = (high - low) or abs(high) * 0.1 or 1.0
    axes.set_xlim(low - 0.18 * span, high + 0.18 * span)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
