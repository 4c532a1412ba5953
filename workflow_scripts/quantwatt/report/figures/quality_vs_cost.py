"""Two quality metrics against energy (measured methods), and the first metric against size (all methods)."""

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from quantwatt.report import labels
from quantwatt.report.comparisons import pareto
from quantwatt.report.figures import (
    GREY,
    GRID,
    INK,
    NARROW,
    PALE,
    Inputs,
    empty,
    plain_log_ticks,
    quality_title,
    solver_colours,
)
from quantwatt.report.tables import METRICS, first_samplings, groups, is_real

WIDTH = 10.6  # inches
CROWD = 12  # with more methods the size panel, where many share a size, gets a separate row
COST = {"energy_j": "energy per {unit} (J)", "latency_s": "time per {unit} (s)"}


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """A row of panels per model, sampling and device; only the first of samplings that differ by seed or steps."""
    width, colours = NARROW if narrow else WIDTH, solver_colours(inputs.summary)
    plans = [_Plan(title, rows, colours, width, narrow) for title, rows in groups(first_samplings(inputs.summary))]
    figure = Figure(figsize=(width, sum(plan.height for plan in plans)), dpi=100)
    height = top = figure.get_figheight()
    for plan in plans:
        axes = [figure.add_axes((x / width, (top - y) / height, w / width, h / height)) for x, y, w, h in plan.boxes]
        _panels(axes, plan.rows, colours, narrow)
        x = 0.1 / width
        figure.text(x, (top - 0.2) / height, plan.title, fontsize=10, fontweight="bold", color=GREY, va="center")
        y = (top - plan.below) / height
        figure.text(x, y, plan.note, fontsize=7.5, color=GREY, va="top", linespacing=1.35)
        _legend(figure, plan.colours, (x, (top - plan.height) / height), narrow)
        top -= plan.height
    return figure


def _legend(figure, colours, corner, narrow):
    dots = [Line2D([], [], marker="o", linestyle="", markersize=5, color=colour) for colour in colours.values()]
    if dots:
        figure.legend(dots, colours, loc="lower left", bbox_to_anchor=corner, ncols=4 if narrow else 10, fontsize=7.5,
                      frameon=False, handletextpad=0.1, columnspacing=1.2, borderpad=0, borderaxespad=0.5)  # fmt: skip


class _Plan:
    """Layout of one group, in inches from its top left corner; it is fixed before labels are placed.

    boxes: the three panels' (x, y of the lower edge, width, height); below: the note's y; colours: the legend's.
    """

    def __init__(self, title, rows, colours, width, narrow):
        self.title, self.rows = title, rows
        self.colours = {solver: colour for solver, colour in colours.items() if solver in set(rows["solver"])}
        crowded = len(rows) > CROWD
        if narrow:
            slots = [(0, 0.35, width, 3.3), (0, 3.65, width, 3.3), (0, 6.95, width, 5.8 if crowded else 3.3)]
        elif crowded:
            slots = [(0, 0.35, width / 2, 3.3), (width / 2, 0.35, width / 2, 3.3), (0, 3.65, width, 4.6)]
        else:
            slots = [(width / 3 * i, 0.35, width / 3, 3.5) for i in range(3)]
        left, right, above, below = 0.62, 0.14, 0.34, 0.5
        self.boxes = [(x + left, y + h - below, w - left - right, h - above - below) for x, y, w, h in slots]
        self.below = slots[-1][1] + slots[-1][3] + 0.05
        self.note = "\n".join(textwrap.fill(line, 62 if narrow else 150) for line in _note(rows))
        legend = -(-len(self.colours) // (4 if narrow else 10))
        self.height = self.below + 0.146 * (self.note.count("\n") + 1) + 0.18 * legend + 0.18


def _note(rows):
    """Yield the meaning of the markers, then the methods with a quality but no measured cost."""
    mixed = "   ◆ mixed allocation" if (rows["allocation"] == "mixed").any() else ""
    yield (
        f"★ unquantized   ● measured here   ○ not measured: no cost{mixed}   line: Pareto front   "
        "colour: solver, library"
    )
    costless = rows[list(COST)].isna().all(axis=1)
    scored = rows[[metric.column for metric in METRICS.values()]].notna().any(axis=1)
    for text, chosen in (
        ("Simulated here: ", rows["status"] == "simulated"),
        ("Not measured here: ", scored & ~rows["status"].isin(["ok", "simulated"])),
        ("Too noisy here: ", scored & (rows["status"] == "ok") & costless),
    ):
        if chosen.any():
            yield text + ", ".join(rows.loc[chosen, "method"])


def _panels(axes, rows, colours, narrow):
    """Draw two quality metrics over energy (else latency), and the first metric over size."""
    qualities = [metric for metric in METRICS.values() if rows[metric.column].notna().any()][:2]
    measured = rows[is_real(rows) & ~rows["baseline"].astype(bool)]
    cost = next((c for c in COST if measured[c].notna().any()), None)
    for panel, quality in zip(axes[:2], [*qualities, None, None], strict=False):
        if quality is None or cost is None:
            empty(panel, "No method was measured here." if quality else "No second quality metric.")
        else:
            _panel(panel, rows[is_real(rows)], cost, quality, colours, narrow, front=True)
    if qualities:
        _panel(axes[2], rows[rows["size_mb"].notna()], "size_mb", qualities[0], colours, narrow)
    else:
        empty(axes[2], "No quality metric.")


def _panel(axes, rows, cost, quality, colours, narrow, front=False):
    """Draw one scatter plot of quality over cost; better is up and to the left."""
    metric, quality = quality, quality.column
    sign = 1 if metric.higher_is_better else -1
    rows = rows[rows[cost].notna() & (rows[quality].notna() | rows["baseline"].astype(bool))]
    if rows.empty:
        empty(axes, "No method was measured here.")
        return
    has_value = rows[quality].notna().to_numpy()
    ceiling = _limits(axes, rows, cost, quality, sign)
    x = rows[cost].to_numpy(float)
    y = np.where(has_value, rows[quality].to_numpy(float), ceiling)
    axes.set_xscale("log")
    plain_log_ticks(axes)
    if not has_value.all():
        axes.axhline(ceiling, color=PALE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    lines = []
    if front:
        keep = pareto(np.column_stack([x, np.where(has_value, sign * y, np.inf)]))
        axes.step(x[keep], y[keep], where="post", color=GREY, linewidth=1, alpha=0.7, zorder=2)
        steps = list(zip(x[keep], y[keep], x[keep][1:], y[keep][1:], strict=False))
        lines = [(x0, y0, x1, y0) for x0, y0, x1, _ in steps] + [(x1, y0, x1, y1) for _, y0, x1, y1 in steps]
    boxes = lines + [
        box for i in range(len(rows)) for box in bars(axes, rows.iloc[i], cost, quality, x[i], y[i], colours)
    ]
    for (_, row), px, py in zip(rows.iterrows(), x, y, strict=True):
        marker(axes, row, px, py, colours)
    names = [_label(row, quality) for _, row in rows.iterrows()]
    inks = [colour_of(row, colours) for _, row in rows.iterrows()]
    labels.place(axes, np.column_stack([x, y]), names, inks, boxes, size=7.5 if not narrow else 8)
    estimated = cost == "energy_j" and (rows["energy_estimated"] == True).any()  # noqa: E712 (None is neither True nor False)
    kind = "size of the quantized weights (MB)" if cost == "size_mb" else COST[cost].format(unit=rows["unit"].iloc[0])
    axes.set_xlabel(kind + (", estimated" if estimated else ""))
    quality_title(axes, metric, rows)
    axes.tick_params(labelsize=8)
    axes.grid(color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)


def _limits(axes, rows, cost, quality, sign):
    """Set the axes' limits with room for labels; return the y at which a baseline without a value is drawn."""
    values = rows[[quality, f"{quality}_low", f"{quality}_high"]].to_numpy(float)
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    span = (high - low) or abs(high) * 0.1 or 1.0
    ceiling = high + 0.28 * span if sign > 0 else low - 0.28 * span
    unvalued = rows[quality].isna().any()
    near, far = low - 0.15 * span, high + 0.15 * span
    if unvalued:
        near, far = (near, ceiling + 0.14 * span) if sign > 0 else (ceiling - 0.14 * span, far)
    axes.set_ylim((near, far) if sign > 0 else (far, near))
    axes.yaxis.set_major_locator(ticker.MaxNLocator(6))
    if unvalued:  # no ticks near a baseline that has no value
        ticks = [t for t in ticker.MaxNLocator(6).tick_values(low, high) if near < t < ceiling - 0.1 * span]
        axes.yaxis.set_major_locator(ticker.FixedLocator(ticks))
    columns = [cost] if cost == "size_mb" else [cost, f"{cost}_low", f"{cost}_high"]
    costs = rows[columns].to_numpy(float)
    costs = costs[np.isfinite(costs) & (costs > 0)]
    room = max((costs.max() / costs.min()) ** 0.22, 1.08)
    axes.set_xlim(costs.min() / room, costs.max() * room)
    return ceiling


def colour_of(row: pd.Series, colours: Mapping[str, str]) -> str:
    """A method's colour, by its solver."""
    return INK if row["baseline"] else colours.get(row["solver"], GREY)


def _label(row, quality):
    if row["baseline"] and pd.isna(row[quality]):
        return f"{row['method']} (the reference)"
    return row["method"]


def marker(axes: Axes, row: pd.Series, x: float, y: float, colours: Mapping[str, str]) -> None:
    """Draw a method's marker: star for the baseline, diamond for a mixed allocation; hollow if not measured."""
    if row["baseline"]:
        axes.plot(x, y, marker="*", markersize=13, color=INK, zorder=4)
        return
    hollow, mixed = row["status"] != "ok", row["allocation"] == "mixed"
    colour = colour_of(row, colours)
    axes.plot(x, y, marker="D" if mixed else "o", markersize=6 if mixed else 6.5, markeredgewidth=1.3,
              markeredgecolor=colour, zorder=4, markerfacecolor="white" if hollow else colour)  # fmt: skip


def bars(
    axes: Axes, row: pd.Series, cost: str, quality: str, x: float, y: float, colours: Mapping[str, str]
) -> list[tuple[float, float, float, float]]:
    """Draw the intervals on both axes; return their boxes in data coordinates."""
    boxes, colour = [], colour_of(row, colours)
    low, high = row.get(f"{cost}_low"), row.get(f"{cost}_high")  # sizes have no interval
    if pd.notna(low) and pd.notna(high):
        axes.plot([low, high], [y, y], color=colour, linewidth=1.4, alpha=0.75, zorder=3)
        boxes.append((low, y, high, y))
    low, high = row[f"{quality}_low"], row[f"{quality}_high"]
    if pd.notna(low) and pd.notna(high):
        axes.plot([x, x], [low, high], color=colour, linewidth=1.4, alpha=0.75, zorder=3)
        boxes.append((x, low, x, high))
    return boxes
