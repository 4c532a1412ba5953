"""Charts with a line (a lane) per method: names on the left, panels beside or below one another, a text per line."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quantwatt.report import labels, marks
from quantwatt.report.clipping import worst_shown
from quantwatt.report.figures import GREY, GRID, INK, NARROW, WIDE, axes_at

LANE, LANE_BELOW_NAME = 0.26, 0.44  # inches: a method's height; with its name above its lane
TITLE, ABOVE, BELOW, GAP = 0.42, 0.3, 0.5, 0.12  # inches: a chart's title; above, below, and beside a panel
SIZE, SIZE_NARROW = 8, 7.5  # points
NAMES = 0.4  # of the narrow figure: longer names stand above their lanes


@dataclass(frozen=True)
class Panel:
    """One x axis over the lanes of a chart; lane i is at y = i, the first on top.

    draw: fills the axes, and sets the limits of x.
    label: of the x axis, with its unit.
    texts: of each lane, written right of the axes; short: the same for the narrow layout.
    other: (label, factor) of a second x axis above: its values are those of the first times the factor.
    """

    draw: Callable[[Axes], None]
    label: str
    texts: Sequence[str]
    short: Sequence[str] = ()
    other: tuple[str, float] | None = None


@dataclass(frozen=True)
class Chart:
    """The lanes of one model, sampling and device.

    names, inks: of the methods [n], from above, and their colours.
    """

    title: str
    names: Sequence[str]
    inks: Sequence[str]
    panels: Sequence[Panel]


@dataclass
class _Widths:
    """Inches of names and texts of all charts, so that they line up."""

    narrow: bool
    charts: Sequence[Chart]
    size: float = field(init=False)

    def __post_init__(self):
        self.size = SIZE_NARROW if self.narrow else SIZE
        self.figure = NARROW if self.narrow else WIDE
        longest = max(labels.width(name, self.size) for chart in self.charts for name in chart.names)
        self.above = self.narrow and longest > NAMES * NARROW
        self.names = 0.15 if self.above else longest + 0.2
        self.lane = LANE_BELOW_NAME if self.above else LANE

    def texts(self, panel):
        texts = panel.short if self.narrow and len(panel.short) else panel.texts
        return texts, max((labels.width(text, self.size) for text in texts), default=0)


def draw(charts: Sequence[Chart], narrow: bool, note: str = "", key: Sequence[tuple[Artist, str]] = ()) -> Figure:
    """A figure of at least one chart; panels are side by side, or below one another in the narrow layout.

    Args:
        note: a sentence below; key: handles and texts of a key below.
    """
    widths, columns = _Widths(narrow, charts), 2 if narrow else 6
    note = "\n".join(textwrap.wrap(note, 62 if narrow else 130))
    key_height = marks.KEY * -(-len(key) // columns) + (0.05 if key else 0)
    foot = 0.15 + key_height + (0.146 * (note.count("\n") + 1) if note else 0)
    heights = [_height(chart, widths) for chart in charts]
    figure = Figure(figsize=(widths.figure, sum(heights) + foot), dpi=100)
    top = height = figure.get_figheight()
    x = 0.1 / widths.figure
    for chart, tall in zip(charts, heights, strict=True):
        figure.text(x, (top - 0.2) / height, chart.title, fontsize=8.5 if narrow else 10, fontweight="bold",
                    color=GREY, va="center")  # fmt: skip
        _chart(figure, chart, top - TITLE, widths)
        top -= tall
    if key:
        marks.key(figure, key, x, top / height, columns)
    figure.text(x, (top - key_height) / height, note, fontsize=7.5, color=GREY, va="top", linespacing=1.35)
    return figure


def _height(chart, widths):
    above = [ABOVE if panel.other else 0.05 for panel in chart.panels]
    rows = sum(above) + len(above) * BELOW if widths.narrow else max(above) + BELOW
    return TITLE + rows + widths.lane * len(chart.names) * (len(above) if widths.narrow else 1)


def _chart(figure, chart, top, widths):
    tall = widths.lane * len(chart.names)
    slot = (widths.figure - widths.names - 0.1) / (1 if widths.narrow else len(chart.panels))
    level = top - max(ABOVE if panel.other else 0.05 for panel in chart.panels)
    for i, panel in enumerate(chart.panels):
        if widths.narrow:
            level = top - (ABOVE if panel.other else 0.05)
        texts, text_width = widths.texts(panel)
        x = widths.names + (0 if widths.narrow else i * slot)
        axes = axes_at(figure, (x, level - tall, max(slot - text_width - GAP - 0.1, 0.6), tall))
        _panel(axes, panel, chart, texts, widths, named=widths.narrow or i == 0)
        top = level - tall - BELOW


def _panel(axes, panel, chart, texts, widths, named):
    n = len(chart.names)
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_yticks([])
    for line in range(1, n):
        axes.axhline(line - 0.5, color=GRID, linewidth=0.7, zorder=0)
    panel.draw(axes)
    axes.set_xlabel(panel.label, fontsize=widths.size)
    axes.tick_params(labelsize=widths.size)
    axes.grid(axis="x", color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    if panel.other:
        label, factor = panel.other
        second = axes.secondary_xaxis("top", functions=(lambda x: x * factor, lambda x: x / factor))
        second.set_xlabel(label, fontsize=widths.size, color=GREY)
        second.tick_params(labelsize=widths.size, colors=GREY, labelcolor=GREY)
        second.xaxis.set_major_locator(MaxNLocator(5))
    place = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": widths.size}
    gap = GAP / (axes.get_position().width * widths.figure)
    for line, (name, ink, text) in enumerate(zip(chart.names, chart.inks, texts, strict=True)):
        if named and widths.above:
            axes.text(0, line - 0.32, name, color=ink, **place)
        elif named:
            axes.text(-gap, line, name, color=ink, ha="right", **place)
        axes.text(1 + gap, line, text, color=INK, **place)


def bars(
    values: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray] | None,
    inks: Sequence[str],
    texts: Sequence[str],
    label: str,
    kept: Sequence[int] | np.ndarray = (),
    **panel: Any,
) -> Panel:
    """A panel of bars from 0; one that would shrink the others to less than a third is cut, with an arrow.

    Args:
        values: [n]; ends: (low [n], high [n]) of their intervals, NaN where there is none; inks: [n] colours.
        kept: indices of bars that are never cut; texts, label, panel: fields of Panel.
    """
    low, high = (np.where(np.isnan(end), values, end) for end in ends or (values, values))

    def draw(axes):
        # The axis starts at 0, which is as good as a point that is never at the edge.
        end = worst_shown(np.append(low, 0), np.append(high, 0), [len(values), *kept])
        most = high[low <= end].max() * 1.04 or 1.0
        axes.set_xlim(0, most)
        for line, (value, ink) in enumerate(zip(values, inks, strict=True)):
            axes.barh(line, min(value, most), height=0.56, color=ink, linewidth=0, zorder=2)
            if low[line] > end:
                axes.plot(most, line, marker=">", markersize=7, color=ink, clip_on=False, zorder=3)
            elif ends and not np.isnan(ends[0][line]):
                axes.plot([low[line], high[line]], [line, line], color="white", linewidth=2.6, zorder=3)
                axes.plot([low[line], high[line]], [line, line], color=INK, linewidth=1.2, zorder=4)
        axes.xaxis.set_major_locator(MaxNLocator(5))

    return Panel(draw, label, texts, **panel)
