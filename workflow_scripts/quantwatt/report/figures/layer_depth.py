"""Error by depth: a map of layer errors per calibrated method; rows are layer types, columns transformer blocks."""

import re

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from quantwatt.report import labels
from quantwatt.report.figures import GREY, NARROW, WIDE, Inputs, axes_at, method_colours, plain_log_ticks, sentence
from quantwatt.report.layer_table import ERRORS, by_error

# Splits down_blocks.1.attentions.0.transformer_blocks.3.attn1.to_q before attn1.to_q.
INNERMOST = re.compile(r"(.*\b(?:\w*blocks|\w*layers|\w*samplers|resnets|attentions)\.\d+)\.(.+)")
BLOCK = re.compile(r"(.*?\.\d+)\.(.+)")  # splits h.3.attn.c_attn into h.3 and attn.c_attn
ROW, TITLE, HEAD, SCALE = 0.135, 0.45, 0.3, 0.7  # inches: a row, a map's title, a group's title, a colour bar
MAPS, MAPS_NARROW = 4, 2  # beside one another, where their names have room


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """Maps of one kind of error share a colour scale; kinds are not comparable. Rounding alone has no output error."""
    layers = inputs.layers[inputs.layers["error_of"].isin(["outputs", "outputs on float inputs", "float outputs"])]
    layers = layers[layers["relative_error"] > 0]
    if layers.empty:
        return sentence("No method used calibration inputs.", narrow)
    groups = [(model, error, *maps_of(rows)) for model, error, rows in by_error(layers)]
    width = NARROW if narrow else WIDE
    left = 0.2 + max(labels.width(kind, 7) for *_, kinds in groups for kind in kinds)
    longest = max(labels.width(method, 7.5) for *_, maps, _ in groups for method in maps)
    most = min(MAPS_NARROW if narrow else MAPS, max(2, *(len(maps) for *_, maps, _ in groups)))
    columns = int(np.clip((width - left) / (longest + 0.15), 1, most))
    step = (width - left) / columns
    heights = [HEAD + -(-len(maps) // columns) * (TITLE + ROW * len(kinds)) + SCALE for *_, maps, kinds in groups]
    figure = Figure(figsize=(width, sum(heights)), dpi=100)
    top = height = figure.get_figheight()
    colours = method_colours(inputs.summary)
    for (model, error, maps, kinds), group_height in zip(groups, heights, strict=True):
        heading = f"{model}: errors of {ERRORS[error]}, by block"
        figure.text(
            0.1 / width, (top - 0.2) / height, heading, fontweight="bold", fontsize=8 if narrow else 9.5, va="center"
        )
        norm = LogNorm(np.nanmin(list(maps.values())), np.nanmax(list(maps.values())))
        for index, (method, errors) in enumerate(maps.items()):
            row, column = divmod(index, columns)
            below = top - HEAD - (row + 1) * (TITLE + ROW * len(kinds)) + 0.18
            box = left + column * step, below, step - 0.12, ROW * len(kinds)
            axes = axes_at(figure, box)
            shown = axes.imshow(errors, norm=norm, cmap="magma_r", aspect="auto", interpolation="none")
            axes.set_title(method, fontsize=7.5, fontweight="normal", color=colours[model, method], pad=3)
            axes.set_facecolor("white")
            ends = sorted({0, errors.shape[1] - 1})
            axes.set_xticks(ends, [str(block) for block in ends], fontsize=7, color=GREY)
            axes.set_xlabel(
                "block", fontsize=7, color=GREY, labelpad=-7
            )  # between the first one's number and the last's
            axes.set_yticks(*((range(len(kinds)), kinds) if column == 0 else ([], [])), fontsize=7)
            axes.tick_params(length=0, pad=2)
        top -= group_height
        box = left, top + 0.42, width - left - 0.12, 0.1
        axes = axes_at(figure, box)
        scale = figure.colorbar(shown, cax=axes, orientation="horizontal")
        scale.set_label("relative error (log); of a layer in chunks, the worst chunk's", fontsize=7.5, color=GREY)
        plain_log_ticks(scale.ax)
        scale.ax.tick_params(labelsize=7)
    return figure


def maps_of(layers: pd.DataFrame) -> tuple[dict[str, np.ndarray], list[str]]:
    """({method: relative errors [layer types, blocks]}, layer types) of one model's layers; NaN without a layer.

    Chunks NAME.0, NAME.1, ... are merged into NAME if another method has NAME unsplit; the largest error is kept.
    """
    whole, blocks, kinds, errors = set(layers["layer"]), {}, {}, {}
    for method, name, error in layers[["method", "layer", "relative_error"]].itertuples(index=False):
        parent, _, chunk = name.rpartition(".")
        name = parent if chunk.isdigit() and parent in whole else name
        match = INNERMOST.match(name) or BLOCK.match(name)
        block, kind = match.groups() if match else ("", name)
        key = method, kinds.setdefault(kind, len(kinds)), blocks.setdefault(block, len(blocks))
        errors[key] = max(error, errors.get(key, 0))
    maps = {method: np.full((len(kinds), len(blocks)), np.nan) for method in dict.fromkeys(layers["method"])}
    for (method, kind, block), error in errors.items():
        maps[method][kind, block] = error
    return maps, list(kinds)
