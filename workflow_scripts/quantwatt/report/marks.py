"""The marks of methods in scatter plots: colour by solver, shape by the bits of a weight, and the key to both.

A ring around the mark is a cache, a diamond around it steps of its own. Filled is measured here, hollow is not. A mixed
allocation, which has no one number of bits, is a diamond, and the unquantized baseline a star.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from quantwatt.report import drawing
from quantwatt.report.figures import GREY, INK, family

NAMES = {16: "not quantized"}  # of SHAPES, else their bits
SHAPES = {2: ("v", 6.8), 3: ("^", 6.8), 4: ("s", 5.8), 8: ("o", 6.5), 16: ("P", 7.0)}  # {least bits: (marker, size)}
STAR, MIXED = ("*", 12.0), ("D", 6.0)
DRAWN = {  # {text of the key: (whether a row has it, (marker around the shape, points wider))}
    "in a ring: cached": (drawing.has_cache, ("o", 6.5)),
    "in a diamond: own steps": (drawing.has_steps, ("D", 4.5)),
}
KEY = 0.155  # inches: a line of the key


def bits_of(row: pd.Series) -> int | None:
    """The key of SHAPES of a method's weights; None for a mixed allocation, or where there are no weights."""
    if row["baseline"] or row["allocation"] == "mixed" or pd.isna(row["weight_bits"]):
        return None
    named = str(row.get("weight_format"))
    # Of integers the format tells the bits; `weight_bits` counts scales and layers that are left in 16 bits, too.
    bits = float(named[3:]) if named.startswith("int") and named[3:].isdigit() else row["weight_bits"]
    return max((least for least in SHAPES if least <= bits), default=min(SHAPES))


def colour_of(row: pd.Series, colours: Mapping[str, str]) -> str:
    """A method's colour, by its family; `colours` as of figures.solver_colours."""
    return INK if row["baseline"] else colours.get(family(row), GREY)


def _shape(row):
    if row["baseline"]:
        return STAR
    bits = bits_of(row)
    return MIXED if row["allocation"] == "mixed" else SHAPES[8 if bits is None else bits]


def marker(axes: Axes, row: pd.Series, x: float, y: float, colours: Mapping[str, str]) -> None:
    """Draw a method's mark at a point."""
    (shape, size), colour = _shape(row), colour_of(row, colours)
    hollow = row["status"] != "ok" and not row["baseline"]
    for ring, wider in [mark for has, mark in DRAWN.values() if has(row)]:
        axes.plot(x, y, marker=ring, markersize=size + wider, markeredgewidth=1.1, markeredgecolor=colour, zorder=4,
                  markerfacecolor="none")  # fmt: skip
    axes.plot(x, y, marker=shape, markersize=size, markeredgewidth=0 if row["baseline"] else 1.3,
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


def key_of(rows: pd.DataFrame, colours: Mapping[str, str], lines: Mapping[str, Any]) -> list[tuple[Artist, str]]:
    """[(handle, text)] of the marks of these rows and of lines `{text: line style}`; of no mark that is not drawn."""
    others = rows[~rows["baseline"].astype(bool)]
    bits = {least for _, row in others.iterrows() if (least := bits_of(row)) is not None}
    shapes = [(STAR, INK, INK, "unquantized")] if len(others) < len(rows) else []
    shapes += [
        (SHAPES[least], GREY, GREY, NAMES.get(least, f"{least} bit weights")) for least in sorted(bits, reverse=True)
    ]
    if (others["allocation"] == "mixed").any():
        shapes.append((MIXED, GREY, GREY, "mixed bits"))
    for text, (has, (shape, wider)) in DRAWN.items():
        if any(has(row) for _, row in others.iterrows()):
            shapes.append(((shape, 4 + wider), GREY, "none", text))
    if (others["status"] != "ok").any():
        shapes.append((SHAPES[8], GREY, "white", "hollow: not measured here"))
    used = {family(row) for _, row in others.iterrows()}
    shapes += [(("o", 5.0), colour, colour, name) for name, colour in colours.items() if name in used]
    handles: list[tuple[Artist, str]] = [
        (Line2D([], [], marker=shape, linestyle="", markersize=0.8 * size, color=edge, markerfacecolor=face), text)
        for (shape, size), edge, face, text in shapes
    ]
    handles += [(Line2D([], [], color=GREY, linewidth=1, linestyle=style), text) for text, style in lines.items()]
    return handles


def key(figure: Figure, handles: Sequence[tuple[Artist, str]], x: float, y: float, columns: int) -> None:
    """Draw a key whose upper left corner is at (x, y) of the figure; a line takes KEY."""
    lines, texts = [line for line, _ in handles], [text for _, text in handles]
    # A legend is filled column by column; to read it along its lines, its entries are dealt out.
    order = [i for column in range(columns) for i in range(column, len(handles), columns)]
    figure.legend([lines[i] for i in order], [texts[i] for i in order], loc="upper left", bbox_to_anchor=(x, y),
                  ncols=columns, fontsize=7.5, frameon=False, handletextpad=0.3, columnspacing=1.2, borderpad=0,
                  borderaxespad=0, labelspacing=0.45, handlelength=1.2)  # fmt: skip
