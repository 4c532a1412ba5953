"""Quality against cost: two metrics over energy or else time (measured methods), and the first over size (all methods).

A panel that would be empty is left out. Without any quality there are bars of the methods' sizes.
"""

import textwrap
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from quantwatt.config.metric_entries import Metric
from quantwatt.report import labels, lanes, marks, scales
from quantwatt.report.figures import (
    GREY,
    GRID,
    NARROW,
    Inputs,
    method_colours,
    quality_title,
    sentence,
    solver_colours,
)
from quantwatt.report.mixed_precision import pareto
from quantwatt.report.tables import METRICS, first_samplings, groups, is_real

WIDTH, HEIGHT, HEIGHT_NARROW = 10.6, 3.5, 3.3  # inches: the figure's width, a panel's height
LEFT, RIGHT, ABOVE, BELOW, TITLE = 0.62, 0.14, 0.34, 0.5, 0.35  # inches: margins of a panel, and a group's title
COST = {"energy_j": ("energy per {unit}", "J"), "latency_s": ("time per {unit}", "s")}
SIZE = {"size_mb": ("size of the quantized weights", "MB")}
NAMED = 10  # of more points, those on the Pareto front and the baseline are named, others where there is room
CONTINUED = 8  # methods of one kind that the note names


@dataclass(frozen=True)
class _Panel:
    cost: str  # column of the summary
    metric: Metric
    rows: pd.DataFrame  # that have the cost, and the metric or are the baseline

    @property
    def sign(self):
        return 1 if self.metric.higher_is_better else -1

    @property
    def scored(self):
        return np.isfinite(self.rows[self.metric.column].to_numpy(float))

    def front(self):
        """Indices of the rows on the Pareto front, by rising cost; a baseline without a value is on none."""
        scored = np.flatnonzero(self.scored)
        points = self.rows.iloc[scored][[self.cost, self.metric.column]].to_numpy(float) * [1, self.sign]
        return scored[pareto(points)]


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """A row of panels per model, sampling and device; only the first of samplings that differ by seed or steps."""
    parts = [(title, rows, _panels(rows)) for title, rows in groups(first_samplings(inputs.summary))]
    parts = [part for part in parts if part[2]]
    if not parts:
        return _sizes(inputs.summary, narrow)
    width, colours = NARROW if narrow else WIDTH, solver_colours(inputs.summary)
    plans = [_Plan(*part, colours, width, narrow) for part in parts]
    figure = Figure(figsize=(width, sum(plan.height for plan in plans)), dpi=100)
    height = top = figure.get_figheight()
    for plan in plans:
        x = 0.1 / width
        figure.text(x, (top - 0.2) / height, plan.title, fontsize=10, fontweight="bold", color=GREY, va="center")
        for panel, (left, below, w, h) in zip(plan.panels, plan.boxes, strict=True):
            _draw(
                figure.add_axes((left / width, (top - below) / height, w / width, h / height)), panel, colours, narrow
            )
        marks.key(figure, plan.key, x, (top - plan.below) / height, plan.columns)
        y = (top - plan.below - plan.key_height) / height
        figure.text(x, y, plan.note, fontsize=7.5, color=GREY, va="top", linespacing=1.35)
        top -= plan.height
    return figure


def _panels(rows):
    """The panels of a group: of each cost and metric for which a quantized method has both."""
    metrics = [metric for metric in METRICS.values() if rows[metric.column].notna().any()][:2]
    quantized, real = ~rows["baseline"].astype(bool), is_real(rows)
    cost = next((column for column in COST if rows.loc[quantized & real, column].notna().any()), None)
    wanted = [(cost, metric) for metric in metrics if cost] + [("size_mb", metric) for metric in metrics]
    panels = []
    for column, metric in wanted[:3] if cost else wanted:
        if column == "size_mb" and cost and metric is not metrics[0]:
            continue
        shown = (rows[column] > 0) & (rows[metric.column].notna() | ~quantized) & (real | (column == "size_mb"))
        if (shown & quantized).any():
            panels.append(_Panel(column, metric, rows[shown]))
    return panels


class _Plan:
    """Layout of one group, in inches from its top left corner; it is fixed before labels are placed.

    boxes: each panel's (x, y of the lower edge, width, height); below: the key's y.
    """

    def __init__(self, title, rows, panels, colours, width, narrow):
        self.title, self.panels = title, panels
        slot, tall = (width, HEIGHT_NARROW) if narrow else (width / len(panels), HEIGHT)
        self.boxes = [
            ((0 if narrow else i * slot) + LEFT, TITLE + tall * (i + 1 if narrow else 1) - BELOW,
             slot - LEFT - RIGHT, tall - ABOVE - BELOW)
            for i in range(len(panels))
        ]  # fmt: skip
        self.below = TITLE + tall * (len(panels) if narrow else 1) + 0.05
        front = {"Pareto front": "-"} if any(len(panel.front()) > 1 for panel in panels) else {}
        drawn = rows[rows["method"].isin({method for panel in panels for method in panel.rows["method"]})]
        self.key, self.columns = marks.key_of(drawn, colours, front), 3 if narrow else 8
        self.key_height = marks.KEY * -(-len(self.key) // self.columns) + 0.05
        self.note = "\n".join(textwrap.fill(line, 62 if narrow else 150) for line in _note(rows, panels))
        self.height = self.below + self.key_height + 0.146 * len(self.note.splitlines()) + 0.18


def _note(rows, panels):
    """Yield what is not in the panels, or not named there."""
    if any(len(panel.rows) > NAMED for panel in panels):
        yield "Named are methods on a Pareto front, and others where there is room; the tables have all."
    costless = rows[list(COST)].isna().all(axis=1)
    scored = rows[[metric.column for metric in METRICS.values()]].notna().any(axis=1)
    for text, chosen in (
        ("Simulated here: ", rows["status"] == "simulated"),
        ("Not measured here: ", scored & ~rows["status"].isin(["ok", "simulated"])),
        ("Too noisy here: ", scored & (rows["status"] == "ok") & costless),
    ):
        named = list(rows.loc[chosen, "method"])
        if named:
            more = f" and {len(named) - CONTINUED} more" if len(named) > CONTINUED else ""
            yield text + ", ".join(named[:CONTINUED]) + more


def _draw(axes, panel, colours, narrow):
    """Draw one scatter plot of quality over cost; better is up and to the left."""
    rows, column = panel.rows, panel.metric.column
    y, beyond_y = scales.quality(axes, rows, panel.metric)
    x, beyond_x = scales.cost(axes, rows, panel.cost)
    beyond = np.column_stack([beyond_x, beyond_y])
    front = panel.front()
    axes.step(x[front], y[front], where="post", color=GREY, linewidth=1, alpha=0.7, zorder=2)
    steps = list(zip(x[front], y[front], x[front][1:], y[front][1:], strict=False))
    boxes = [(x0, y0, x1, y0) for x0, y0, x1, _ in steps] + [(x1, y0, x1, y1) for _, y0, x1, y1 in steps]
    for i, (_, row) in enumerate(rows.iterrows()):
        if not beyond[i].any():
            boxes += marks.bars(axes, row, panel.cost, column, x[i], y[i], colours)
        marks.marker(axes, row, x[i], y[i], colours)
        scales.arrow(axes, (x[i], y[i]), beyond[i], marks.colour_of(row, colours))
    order = [int(i) for i in np.flatnonzero(rows["baseline"])] + list(front) + list(range(len(rows)))
    named = set(order) if len(rows) <= NAMED else {*np.flatnonzero(rows["baseline"]), *front}
    named |= set(np.flatnonzero(beyond.any(axis=1)))
    order = sorted(dict.fromkeys(order), key=lambda i: i not in named)
    points = np.column_stack([x, y])[order]
    names = [_label(panel, rows.iloc[i], beyond[i]) for i in order]
    inks = [marks.colour_of(rows.iloc[i], colours) for i in order]
    labels.place(axes, points, names, inks, boxes, size=7.5 if not narrow else 8, needed=len(named))
    name, unit = (COST | SIZE)[panel.cost]
    estimated = panel.cost == "energy_j" and rows["energy_estimated"].eq(True).any()
    axes.set_xlabel(f"{name.format(unit=rows['unit'].iloc[0])} ({unit}){', estimated' if estimated else ''}")
    quality_title(axes, panel.metric, rows)
    axes.tick_params(labelsize=8)
    axes.grid(color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)


def _label(panel, row, beyond):
    if row["baseline"] and pd.isna(row[panel.metric.column]):
        return f"{row['method']} (the reference)"
    of_cost, of_metric = beyond
    values = [(row[panel.cost], (COST | SIZE)[panel.cost][1])] if of_cost else []
    values += [(row[panel.metric.column], panel.metric.unit)] if of_metric else []
    values = [f"{labels.digits(value)} {unit}".rstrip() for value, unit in values]
    return f"{row['method']}: {', '.join(values)}" if values else row["method"]


def _sizes(summary, narrow):
    """Bars of the quantized weights' sizes, where no method has a quality."""
    colours, charts = method_colours(summary), []
    for title, rows in groups(first_samplings(summary)):
        rows = rows[rows["size_mb"].notna()].sort_values("size_mb", kind="stable")
        if len(rows) > rows["baseline"].sum():
            inks = [colours[key] for key in rows[["model", "method"]].itertuples(index=False, name=None)]
            [base] = rows.loc[rows["baseline"].astype(bool), "size_mb"].to_list() or [np.nan]
            shares = ["" if np.isnan(base) else f", {size / base:.0%}" for size in rows["size_mb"]]
            texts = [f"{labels.digits(size)} MB{share}" for size, share in zip(rows["size_mb"], shares, strict=True)]
            panel = lanes.bars(rows["size_mb"].to_numpy(float), None, inks, texts, "size of the quantized weights (MB)",
                               np.flatnonzero(rows["baseline"]))  # fmt: skip
            charts.append(lanes.Chart(title, list(rows["method"]), inks, [panel]))
    return lanes.draw(charts, narrow) if charts else sentence("No method was scored or quantized.", narrow)
