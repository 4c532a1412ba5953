"""The figures of the report, drawn from the tables and the image sets; one module per figure.

A module's `draw(inputs, narrow)` returns a matplotlib figure. Every figure is written as PNG and SVG in a wide layout,
and as a second SVG in a narrow layout for phones. The same input gives the same bytes. A figure that uses readings of a
fake device gets the watermark FAKE.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quantwatt import registry
from quantwatt.artifacts import layout
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import atomic_path
from quantwatt.config.metric_entries import Metric

INK, GREY, PALE, GRID = "#1b1f24", "#6b7280", "#d5d9de", "#eef0f2"
# Most colours of Okabe and Ito, for colour-blind readers, and others dark enough for text; the lightest come next to
# last, and last what nobody would tell apart without the names beside it.
PALETTE = [
    *("#0072b2", "#d55e00", "#00875f", "#b85c92", "#7a4fb5"),
    *("#a3123f", "#7d6b2a", "#b87f00", "#3a96cc", "#6f9400"),
    *("#5b3a29", "#008b8b", "#d14d72", "#3b3f8f"),
]
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.hashsalt": "quantwatt",
    "svg.fonttype": "path",
    "text.hinting": "none",
}
WIDE, NARROW = 9, 4.6  # inches
DPI = 160


@dataclass(frozen=True)
class Inputs:
    """Data for the figures; only some figures need the fields other than `summary`."""

    summary: pd.DataFrame
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)
    sensitivity: pd.DataFrame = field(default_factory=pd.DataFrame)
    results: Path | None = None
    cells: tuple = ()


def draw(name: str, inputs: Inputs, stem: str | Path) -> None:
    """Write figure `name` as STEM.png, STEM.svg and STEM-narrow.svg.

    Raises:
        DataError: there is no such figure, or an image or a power trace is missing or corrupted.
    """
    if name not in layout.FIGURES:
        raise DataError(f"there is no figure {name!r}; one of {', '.join(layout.FIGURES)}.")
    module, stem = registry.load("figures", name), Path(stem)
    with matplotlib.rc_context(STYLE):
        for narrow in (False, True):
            figure = module.draw(inputs, narrow)
            if inputs.summary["device_fake"].any():
                watermark(figure)
            if not narrow:
                with atomic_path(stem.with_name(f"{stem.name}.png")) as path:
                    figure.savefig(path, dpi=DPI, metadata={"Software": None})
            suffix = "-narrow.svg" if narrow else ".svg"
            with atomic_path(stem.with_name(f"{stem.name}{suffix}")) as path:
                figure.savefig(path, dpi=DPI, metadata={"Date": None, "Creator": None})


def watermark(figure: Figure) -> None:
    """Write FAKE across a figure that uses readings of a fake device."""
    size = 0.30 * 72 * min(*figure.get_size_inches())
    figure.text(0.5, 0.5, "FAKE", rotation=24, ha="center", va="center", fontsize=size, color="#c00000", alpha=0.22,
                fontweight="bold", zorder=100, gid="fake-watermark")  # fmt: skip


def family(row: Mapping[str, Any] | pd.Series) -> str | None:
    """What a method's colour stands for: solver or library; the format where values are only rounded to its codes."""
    weights = row.get("weight_format")
    coded = isinstance(weights, str) and not weights.startswith("int")
    return weights if coded and row["solver"] == "rtn" else row["solver"]


def solver_colours(summary: pd.DataFrame) -> dict[str, str]:
    """`{family: colour}` of the methods with a checkpoint, equal in all figures; without the baseline."""
    rows = summary[~summary["baseline"].astype(bool) & summary["size_mb"].notna() & summary["solver"].notna()]
    found = sorted({str(family(row)) for _, row in rows.iterrows()})
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(found)}


def method_colours(summary: pd.DataFrame) -> dict[tuple[str, str], str]:
    """`{(model, method): colour}`: the family's colour; black for the baseline, grey without a solver."""
    colours = solver_colours(summary)
    return {
        (row["model"], row["method"]): INK if row["baseline"] else colours.get(family(row), GREY)
        for _, row in summary.drop_duplicates(["model", "method"]).iterrows()
    }


def axes_at(figure: Figure, box: Sequence[float]) -> Axes:
    """New axes at a box (x, y, width, height), in inches from the figure's lower left corner."""
    width, height = figure.get_size_inches()
    x, y, w, h = box
    return figure.add_axes((x / width, y / height, w / width, h / height))


def plain_log_ticks(axes: Axes, most: float = np.inf) -> None:
    """Set a few ticks, of plain numbers up to `most`, on a logarithmic x axis, also if it spans less than a decade."""
    low, high = axes.get_xlim()
    if high / low > 8:
        locator = ticker.LogLocator(subs=(1,) if high / low > 100 else (1, 2, 5))
    else:
        locator = ticker.MaxNLocator(7, steps=[1, 2, 5, 10])
    ticks = [tick for tick in locator.tick_values(low, high) if low < tick < min(high, most)]
    axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def quality_title(axes: Axes, metric: Metric, rows: pd.DataFrame) -> None:
    """Set a panel's title: the metric's name, better direction, unit and feature extractor."""
    features = next(iter(rows["features"].dropna()), None) if metric.published_features else None
    name = metric.name + (f" ({metric.unit})" if metric.unit else "") + (f", {features} features" if features else "")
    axes.set_title(f"{'↑' if metric.higher_is_better else '↓'} {name}", fontsize=8.5, pad=6)


def empty(axes: Axes, text: str) -> None:
    """Replace a panel by a sentence."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(text, 34), ha="center", va="center", color=GREY, transform=axes.transAxes)


def sentence(text: str, narrow: bool) -> Figure:
    """A figure that contains only a sentence."""
    figure = Figure(figsize=(NARROW if narrow else WIDE, 1.2), dpi=100)
    empty(figure.add_axes((0, 0, 1, 1)), text)
    return figure
