"""Images of the same prompts and seeds by every method: a row per method, a column per prompt."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from quantwatt.artifacts import layout
from quantwatt.artifacts.manifest import read_json, verify_files
from quantwatt.data import scenes
from quantwatt.report.figures import DPI, GREY, Inputs, sentence
from quantwatt.report.tables import first_samplings, paired_with_value

PROMPTS, PROMPTS_NARROW = 8, 4
TILE = 128  # smallest side of an image in the grid, in pixels


def draw(inputs: Inputs, narrow: bool) -> Figure:
    """A grid per model and sampling; only the first of samplings that differ only by seed or steps."""
    grids, models = [], {}
    shown = set(first_samplings(inputs.summary)["sampling"])
    for cell in inputs.cells:
        if cell["sampling"] in shown:
            models.setdefault((cell["model"], cell["sampling"]), []).append(cell)
    for key, cells in models.items():
        full, chosen = [], []
        for cell in cells:
            path, images = _image_set(inputs.results, cell)
            if images and not chosen:
                chosen = choose_prompts([image["prompt"] for image in images], PROMPTS_NARROW if narrow else PROMPTS)
            if images:
                full.append((cell, path, [images[i] for i in chosen]))
        if full:
            grids.append((key, full))
    if not grids:
        return sentence("No image was generated.", narrow)
    return _grid_figure(inputs.summary, grids, narrow)


def _image_set(results, cell):
    path = layout.path(results, "images", cell)
    return path, read_json(path)["images"]


def choose_prompts(prompts: Sequence[str], n: int) -> list[int]:
    """Indices of `n` prompts: the first; if prompts describe scenes, half with one object and half with two."""
    try:
        pairs = [scenes.parse(prompt).relation is not None for prompt in prompts]
    except ValueError:
        return list(range(min(n, len(prompts))))
    single = [i for i, pair in enumerate(pairs) if not pair][: n // 2]
    double = [i for i, pair in enumerate(pairs) if pair][: n - len(single)]
    return (single + double + [i for i in range(len(prompts)) if i not in single + double])[:n]


def _grid_figure(summary, grids, narrow):
    gap, pixels = 6, 22 if narrow else 19
    longest = max(len(part) for _, full in grids for cell, *_ in full for part in _broken(cell["method"]))
    left = 24 + round(max(longest, 9) * pixels * 0.62)
    tiles = [[[_tile(path, image) for image in images] for _, path, images in full] for _, full in grids]
    side_y, side_x = np.max([tile.shape[:2] for grid in tiles for row in grid for tile in row], axis=0)
    columns = max(len(row) for grid in tiles for row in grid)
    font, lines = 72 * pixels / DPI, 10 if narrow else 8
    head = round((lines * 1.1 + 0.6) * pixels)
    width = left + columns * (side_x + gap)
    height = sum(head + 44 + len(grid) * (side_y + gap) for grid in tiles)
    canvas = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    y = 0
    values = summary.set_index(["model", "method", "sampling"])
    wrap = max(int(side_x / (pixels * 0.56)), 8)
    for ((model, sampling), full), grid in zip(grids, tiles, strict=True):
        axes.text(8, y + 24, f"{model} · {sampling}", fontsize=font * 1.15, fontweight="bold", color=GREY, va="center")
        y += 44
        for k, image in enumerate(full[0][2]):
            text = textwrap.fill(image["prompt"], wrap, max_lines=lines, break_long_words=False, placeholder=" …")
            axes.text(
                left + k * (side_x + gap), y + head - 10, text, fontsize=font * 0.92, va="bottom", linespacing=1.15
            )
        y += head
        for (cell, _, _), row in zip(full, grid, strict=True):
            for k, tile in enumerate(row):
                x = left + k * (side_x + gap)
                canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
            axes.text(8, y + side_y / 2, _row_label(cell, values), fontsize=font, va="center", linespacing=1.3)
            y += side_y + gap
    axes.imshow(canvas, interpolation="none", extent=(0, width, height, 0), aspect="auto")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure


def _broken(name, most=16):
    """A name split at its dashes into lines of at most `most` letters, if possible."""
    lines = [""]
    for part in re.findall(r"[^-]+-*", name):
        if lines[-1] and len(lines[-1]) + len(part) > most:
            lines.append("")
        lines[-1] += part
    return lines


def _row_label(cell, values):
    key = (cell["model"], cell["method"], cell["sampling"])
    text = "\n".join(_broken(cell["method"]))
    if key in values.index:
        row = values.loc[key]
        for metric in paired_with_value(row)[:1]:
            value = row[metric.column]
            text += f"\n{value:.1f} {metric.unit}" if metric.unit else f"\n{metric.title} {value:.3g}"
        if row["baseline"]:
            text += "\nreference"
        elif row["status"] == "simulated":
            text += "\nsimulated"
    return text


def _tile(manifest, image):
    """Pixels uint8 [h, w, 3] of one image; a small image is enlarged by an integer factor without smoothing."""
    verify_files(manifest, {image["file"]: {"sha256": image["sha256"], "bytes": image["bytes"]}})
    with Image.open(Path(manifest).parent / image["file"]) as opened:
        picture = opened.convert("RGB")
    if max(picture.size) > 2 * TILE:
        picture.thumbnail((2 * TILE, 2 * TILE), Image.Resampling.LANCZOS)
        return np.asarray(picture)
    factor = -(-TILE // max(picture.size))
    return np.asarray(picture).repeat(factor, 0).repeat(factor, 1)
