"""Relative error of every quantized layer, by round-to-nearest and by the method: two rows of dots per method.

A panel per kind of error (keys of `layer_table.ERRORS`): of the output if the solver used calibration inputs, of the
output against the float model's if the solver used that, else of the weights. Kinds are not comparable.
"""

import textwrap

import numpy as np
from matplotlib.figure import Figure

from quantwatt.report import labels
from quantwatt.report.figures import GREY, GRID, INK, NARROW, WIDE, Inputs, method_colours, plain_log_ticks, sentence
from quantwatt.report.layer_table import ERRORS, by_error, short_names

NOTE = "above, pale: rounded to nearest; below, dark: by the method; bars: medians; ring: the worst layer"
EDGE = 1.05  # inches above and below a panel's lanes
LETTERS = 24  # of a layer's name that fit next to its dots


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """Methods are ordered by their median error, the lowest first; the worst layer is labelled."""
    layers = inputs.layers[inputs.layers["relative_error"] > 0]
    if layers.empty:
        return sentence("No layer was quantized.", narrow)
    panels = by_error(layers)
    lanes = [rows["method"].nunique() * (0.52 if narrow else 0.46) for *_, rows in panels]
    head = 0.35 if narrow else 0.2
    size = (NARROW if narrow else WIDE, sum(lanes) + EDGE * len(panels) + head)
    figure = Figure(figsize=size, dpi=100)
    (width, height), top = size, size[1] - head
    colours = method_colours(inputs.summary)
    left = 0.15 if narrow else 0.3 + max(labels.width(method, 9) for method in set(layers["method"]))
    right = 0.15 if narrow else 2.15
    figure.text(0.1 / width, 1 - 0.08 / height, textwrap.fill(NOTE, 66 if narrow else 120), fontsize=7.5, color=GREY,
                va="top", linespacing=1.3)  # fmt: skip
    for (model, error, rows), lane in zip(panels, lanes, strict=True):
        top -= lane + EDGE
        axes = figure.add_axes((left / width, (top + 0.55) / height, (width - left - right) / width, lane / height))
        _panel(axes, rows, model, colours, narrow)
        start = 0 if narrow else -(left - 0.1) / (width - left - right)
        axes.set_title(f"{model}: errors of {ERRORS[error]}", pad=8, x=start, fontsize=8.5 if narrow else 9.5)
    return figure


def _panel(axes, layers, model, colours, narrow):
    medians = layers.groupby("method", sort=False)[["error_before", "relative_error"]].median()
    medians = medians.sort_values("relative_error", kind="stable")
    values = layers[["error_before", "relative_error"]].to_numpy(float)
    low, high = np.nanmin(values[values > 0]), np.nanmax(values)
    room = (high / low) ** 0.03 if high > low else 1.1
    axes.set_xlim(low / room, high * room)
    axes.set_xscale("log")
    plain_log_ticks(axes)
    names = short_names(layers["layer"])
    above, below = (-0.08, 0.26) if narrow else (-0.17, 0.17)
    for line, (method, (before, after)) in enumerate(medians.iterrows()):
        rows = layers[layers["method"] == method]
        spread = ((np.arange(len(rows)) * 0.618034) % 1 - 0.5) * 0.2
        colour, worst = colours[model, method], rows["relative_error"].argmax()
        y, errors = line + below + spread, rows["relative_error"].to_numpy()
        axes.scatter(rows["error_before"], line + above + spread, s=9, color=GREY, alpha=0.3, linewidths=0, zorder=3)
        axes.scatter(errors, y, s=11, color=colour, alpha=0.75, linewidths=0, zorder=3)
        axes.scatter(errors[worst], y[worst], s=26, facecolors="none", edgecolors=INK, linewidths=0.8, zorder=5)
        for median, middle in ((before, line + above), (after, line + below)):
            axes.plot([median] * 2, [middle - 0.14, middle + 0.14], color=INK, linewidth=1.6, zorder=4)
        axes.plot([before, after], [line + above, line + below], color=INK, linewidth=0.7, zorder=4)
        change = f"{after:.2g}" if np.isnan(before) else f"{before:.2g} → {after:.2g}"
        text = f"worst {abridged(names[rows.index[worst]])} {errors[worst]:.2g}"
        _texts(axes, line, method, change, text, colour, narrow)
    axes.set_yticks([])
    axes.set_ylim(len(medians) - 0.5, -0.5)
    axes.set_xlabel("relative error (log)")
    axes.grid(axis="x", color=GRID, zorder=0)
    for line in range(1, len(medians)):
        axes.axhline(line - 0.5, color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def abridged(name: str) -> str:
    """A layer's name; if it is long, without its middle: down_blocks.1…attn2.to_k."""
    parts, shorter = name.split("."), name
    cuts = [(start, rest) for start in (2, 1) for rest in range(start + 1, len(parts))]
    for start, rest in cuts:
        if len(shorter) > LETTERS:
            shorter = ".".join(parts[:start]) + "…" + ".".join(parts[rest:])
    return shorter


def _texts(axes, line, method, change, worst, colour, narrow):
    """Write the method's name and errors next to its dots, or above them in the narrow layout."""
    place = {"transform": axes.get_yaxis_transform(), "va": "center"}
    if narrow:
        axes.text(0, line - 0.36, method, color=colour, fontsize=7.5, fontweight="bold", **place)
        room = axes.get_position().width * NARROW - labels.width(method, 8.5) - 0.1  # its letters are bold
        texts = (f"{change}, {worst}", change)
        text = next((text for text in texts if labels.width(text, 7) < room), "")
        axes.text(1, line - 0.36, text, fontsize=7, color=GREY, ha="right", **place)
        return
    axes.text(-0.015, line, method, color=colour, ha="right", **place)
    axes.text(1.015, line - 0.16, f"median {change}", fontsize=7.5, color=INK, **place)
    axes.text(1.015, line + 0.17, worst, fontsize=7, color=GREY, **place)
