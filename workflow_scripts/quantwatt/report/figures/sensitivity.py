"""Sensitivity of each layer to each candidate format; below it, the bits that every mixed method gave the layer.

Layers are in execution order from left to right; each metric has a separate panel.
"""

import itertools
import re

import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from quantwatt.report.figures import GREY, GRID, INK, NARROW, PALETTE, Inputs, axes_at, method_colours, sentence
from quantwatt.report.layer_table import SENSITIVITIES, by_group

WIDTH = 10.6  # inches
PANEL, STRIP, HEAD, FOOT = 2.3, 0.17, 0.55, 0.75  # inches: a panel, a strip of bits, and margins
BLOCK = re.compile(r"(?:\w+_)?(?:blocks|layers|block)(?:\.\d+)?")  # down_blocks.1 of down_blocks.1.resnets.0.conv1
BITS = {2: "#08306b", 3: "#1f5fa8", 4: "#4f97cc", 6: "#8fc3e3", 8: "#cfe3f1", 16: "#f1f1f1"}
SIDES = {"value_bits": "weights", "activation_bits": "activations"}
FLOAT_BITS = 16
MANY_BLOCKS = 20  # from this number on, the lines between blocks are faint


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """A panel with strips per model, sensitivity, group and metric; two side by side in the wide layout."""
    table = inputs.sensitivity
    if table["value"].isna().all():
        return sentence("No method's allocation is mixed, so no layer was tried alone.", narrow)
    parts = [(*part, strips(inputs, part)) for part in by_group(table)]
    candidates = dict(zip(dict.fromkeys(table["candidate"]), itertools.cycle(PALETTE), strict=False))
    width, size, colours = NARROW if narrow else WIDTH, 7 if narrow else 7.5, method_colours(inputs.summary)
    left = max(
        0.6, 0.12 + 0.0082 * size * max((len(text) for *_, bit_strips in parts for _, text, _ in bit_strips), default=0)
    )
    rows = [parts[i : i + (1 if narrow else 2)] for i in range(0, len(parts), 1 if narrow else 2)]
    heights = [HEAD + PANEL + STRIP * max(1, *(len(bit_strips) for *_, bit_strips in row)) + FOOT for row in rows]
    figure = Figure(figsize=(width, sum(heights) + 0.3), dpi=100)
    top = figure.get_figheight()
    for row, tall in zip(rows, heights, strict=True):
        room = width / len(row)
        for k, (model, name, group, metric, values, bit_strips) in enumerate(row):
            x, below = k * room + left, top - HEAD - PANEL
            axes = axes_at(figure, (x, below, room - left - 0.15, PANEL))
            layers = list(dict.fromkeys(values["layer"]))
            _dots(axes, values, layers, metric, candidates, size)
            kind = f"{group} layers" if group else "layers"
            axes.set_title(f"{model} · {name}: {len(layers)} {kind}, each alone", x=(0.1 - left) / (room - left - 0.15),
                           fontsize=8.5 if narrow else 9.5, pad=18)  # fmt: skip
            strip = STRIP * max(1, len(bit_strips))  # empty if no method used this sensitivity
            box = x, below - 0.08 - strip, room - left - 0.15, strip
            under = axes_at(figure, box)
            _strips(under, bit_strips, layers, {method: colours[model, method] for method, *_ in bit_strips}, size)
            _blocks((axes, under), layers, (room - left - 0.15) * 72, size)
        top -= tall
    _key(figure, {bits for *_, bit_strips in parts for *_, cells in bit_strips for bits in cells.values()}, size)
    return figure


def strips(
    inputs: Inputs, part: tuple[str, str, str | None, str, pd.DataFrame]
) -> list[tuple[str, str, dict[str, float]]]:
    """[(method, label, {layer: bits})] of a part's mixed methods: weights; activations only if their bits differ.

    A layer that is not quantized in the checkpoint counts as 16 bit. Bits are those of the values, without scales. Of a
    part with the rows of one range of steps, they are those of this range.
    """
    model, _, _, _, values = part
    rows = inputs.summary[inputs.summary["model"] == model]
    rows = rows[rows["sensitivity"].isin(values["sensitivity"])]
    labelled_strips, span = [], values["range"].iloc[0]
    for method in dict.fromkeys(rows["method"]):
        table = inputs.layers[(inputs.layers["model"] == model) & (inputs.layers["method"] == method)]
        serves = np.array([_serves(ranges, span) for ranges in table["ranges"]], dtype=bool)
        table = table[serves].set_index("layer")
        for side, word in SIDES.items() if len(table) else ():
            bits = table[side].reindex(values["layer"].unique()).fillna(FLOAT_BITS).clip(upper=FLOAT_BITS)
            if side == "value_bits" or bits.nunique() > 1:
                labelled_strips.append((method, f"{method} {word}", bits.to_dict()))
    return labelled_strips


def _serves(ranges, span):
    """Whether a layer has a row's formats in a range of steps; empty ranges are all."""
    return pd.isna(ranges) or pd.isna(span) or str(int(span)) in str(ranges).split()


def _dots(axes, values, layers, metric, colours, size):
    """Draw dots in a colour per candidate; sensitive layers are low, and a cross at the bottom is a broken model."""
    place = {layer: i for i, layer in enumerate(layers)}
    side = np.clip(320 / len(layers), 1.2, 16)  # points squared
    colours = {candidate: colour for candidate, colour in colours.items() if candidate in set(values["candidate"])}
    for candidate, colour in colours.items():
        rows = values[values["candidate"] == candidate]
        axes.scatter(rows["layer"].map(place), rows["value"], s=side, color=colour, linewidths=0, zorder=3)
        broken = rows.loc[rows["value"].isna(), "layer"].map(place)  # the model gave no finite number
        axes.scatter(broken, np.full(len(broken), 0.02), s=side, color=colour, marker="x", linewidths=0.8,
                     transform=axes.get_xaxis_transform(), zorder=3)  # fmt: skip
    if metric == "noise":
        axes.set_yscale("log")
        axes.invert_yaxis()
    dots = [Line2D([], [], marker="o", linestyle="", markersize=4, color=colour) for colour in colours.values()]
    axes.legend(dots, colours, loc="lower left", bbox_to_anchor=(0, 1), ncols=8, fontsize=size, frameon=False,
                handletextpad=0, columnspacing=0.9, borderpad=0, borderaxespad=0.3)  # fmt: skip
    axes.set_ylabel(SENSITIVITIES[metric], fontsize=size)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.tick_params(labelsize=size, colors=GREY, labelcolor=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)


def _strips(axes, strips, layers, colours, size):
    """Draw a row of cells per strip (weights or activations of a method), a column per layer."""
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.spines[:].set_visible(False)
    if strips:
        cells = np.array([[bits[layer] for layer in layers] for *_, bits in strips])
        edges = [*BITS, np.inf]
        axes.imshow(cells, cmap=ListedColormap(list(BITS.values())), norm=BoundaryNorm([*edges[:-1], 1000], len(BITS)),
                    aspect="auto", interpolation="none")  # fmt: skip
        for line in range(1, len(strips)):
            axes.axhline(line - 0.5, color="white", linewidth=1.5)
    axes.set_yticks(range(len(strips)), [label for _, label, _ in strips], fontsize=size)
    for text, (method, *_) in zip(axes.get_yticklabels(), strips, strict=True):
        text.set_color(colours[method])
    axes.tick_params(length=0, pad=3)


def _blocks(panels, layers, points, size):
    """Label the layers of each transformer block below the strips, and draw lines between blocks."""
    blocks = [match.group() if (match := BLOCK.match(layer)) else "" for layer in layers]
    starts = [i for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1]] + [len(layers)]
    (above, under), strength = panels, 0.7 if len(starts) < MANY_BLOCKS else 0.25
    above.set_xticks([])
    ticks, free = [], 0.0  # the first position, in points, where a label does not cover the previous label
    for start, end in itertools.pairwise(starts):
        for axes in panels if start else ():
            axes.axvline(start - 0.5, color="white" if axes is under else GREY, linewidth=0.5, alpha=strength, zorder=2)
        middle = (start + end) / 2 / len(layers) * points
        if blocks[start] and middle >= free:
            ticks.append(((start + end - 1) / 2, blocks[start]))
            free = middle + 1.8 * size
    under.set_xticks([x for x, _ in ticks], [name for _, name in ticks], rotation=35, ha="right", fontsize=size)


def _key(figure, used, size):
    """Add the legend of the bits that occur."""
    shown = sorted({max((known for known in BITS if known <= bits), default=min(BITS)) for bits in used})
    if shown:
        patches = [Patch(facecolor=BITS[bits], edgecolor=GREY, linewidth=0.4) for bits in shown]
        names = ["not quantized" if bits == FLOAT_BITS else f"{bits} bits" for bits in shown]
        figure.legend(patches, names, loc="lower left", bbox_to_anchor=(0, 0),
                      ncols=len(shown), fontsize=size, frameon=False, handlelength=1.2, columnspacing=1.2)  # fmt: skip
