"""The figures of the report, drawn from the tables and the image sets.

Every figure is written as PNG and SVG in a wide layout, and as a second SVG for a phone's width. The same input gives
the same bytes. A figure made from the readings of a fake device says so across its whole face.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure
from PIL import Image

from quantwatt import labels
from quantwatt.manifest import DataError, atomic_path, read_json, verify_files
from quantwatt.tables import HIGHER_IS_BETTER, groups, is_real

INK, GREY, PALE = "#1b1f24", "#6b7280", "#d5d9de"
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]  # Okabe and Ito, for colour-blind eyes
STYLE = {
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
QUALITY = {
    "psnr_db": "PSNR to the 16-bit image (dB)",
    "fid": "Fréchet distance",
    "kid": "kernel distance",
    "clip_score": "CLIP score",
    "ssim": "SSIM to the 16-bit image",
}
COST = {"energy_j": "energy per image (J)", "latency_s": "time per image (s)"}
PROMPTS, PROMPTS_NARROW = 8, 4
TILE = 128  # pixels of an image's side in the grid, at least
DPI = 160


@dataclass(frozen=True)
class Inputs:
    """What a figure may draw from; `layers`, `results` and `cells` are needed by some figures only."""

    summary: pd.DataFrame
    layers: pd.DataFrame | None = None
    results: Path | None = None
    cells: tuple = ()


def draw(name, inputs, stem):
    """Write figure `name` as STEM.png, STEM.svg and STEM-narrow.svg.

    Raises:
        DataError: no such figure, or an image or trace is missing or damaged.
    """
    if name not in FIGURES:
        raise DataError(f"there is no figure {name!r}; one of {', '.join(FIGURES)}.")
    stem = Path(stem)
    with matplotlib.rc_context(STYLE):
        for narrow in (False, True):
            figure = FIGURES[name](inputs, narrow)
            if inputs.summary["device_fake"].any():
                watermark(figure)
            if not narrow:
                with atomic_path(stem.with_name(f"{stem.name}.png")) as path:
                    figure.savefig(path, dpi=DPI, metadata={"Software": None})
            suffix = "-narrow.svg" if narrow else ".svg"
            with atomic_path(stem.with_name(f"{stem.name}{suffix}")) as path:
                figure.savefig(path, dpi=DPI, metadata={"Date": None, "Creator": None})


def watermark(figure):
    """Write FAKE across a figure made from a fake device's readings."""
    size = 0.30 * 72 * min(*figure.get_size_inches())
    figure.text(0.5, 0.5, "FAKE", rotation=24, ha="center", va="center", fontsize=size, color="#c00000", alpha=0.22,
                fontweight="bold", zorder=100, gid="fake-watermark")  # fmt: skip


def pareto(points):
    """Indices of the points that no other beats, by rising cost.

    Args:
        points: [n, 2] of (cost, quality), where a smaller cost and a larger quality are better.
    """
    points = np.asarray(points, dtype=float)
    order = np.lexsort((-points[:, 1], points[:, 0]))
    front, best = [], -np.inf
    for i in order:
        if points[i, 1] > best:
            front.append(int(i))
            best = points[i, 1]
    return front


def solver_colours(summary):
    """`{solver: colour}`, the same in every figure; the 16-bit baseline is black."""
    solvers = list(dict.fromkeys(summary.loc[~summary["baseline"].astype(bool), "solver"].dropna()))
    return {solver: PALETTE[i % len(PALETTE)] for i, solver in enumerate(sorted(solvers))}


# --- quality against cost -------------------------------------------------------------------------------------------


def quality_vs_cost(inputs, narrow):
    """Quality against joules (real methods) in two metrics, and against size (every method)."""
    drawn = groups(inputs.summary)
    panels = 3
    if narrow:
        figure = Figure(figsize=(4.6, (3.5 * panels + 1.1) * len(drawn)), dpi=100)
        grid = figure.subplots(panels * len(drawn), 1, squeeze=False).reshape(len(drawn), panels)
    else:
        figure = Figure(figsize=(10.6, 0.15 + 4.3 * len(drawn)), dpi=100)
        grid = figure.subplots(len(drawn), panels, squeeze=False)
    _layout(figure, grid, narrow)
    colours = solver_colours(inputs.summary)
    for (title, rows), axes in zip(drawn, grid, strict=True):
        qualities = [q for q in QUALITY if rows[q].notna().any()][:2]
        cost = next((c for c in COST if rows.loc[is_real(rows), c].notna().any()), None)
        for panel, quality in zip(axes[:2], [*qualities, None, None], strict=False):
            if quality is None or cost is None:
                _empty(panel, "No method was measured here." if quality else "No second quality metric.")
            else:
                _panel(panel, rows[is_real(rows)], cost, quality, colours, narrow, front=True)
        if qualities:
            _panel(axes[2], rows[rows["size_mb"].notna()], "size_mb", qualities[0], colours, narrow)
        else:
            _empty(axes[2], "No quality metric.")
        _heading(figure, axes, title, rows, narrow)
    return figure


def _layout(figure, grid, narrow):
    """Fixed margins in inches, so that names can be placed before anything is drawn."""
    width, height = figure.get_size_inches()
    rows, columns = grid.shape
    left, right, top, bottom = 0.62, 0.14, 0.62, 1.08
    if narrow:
        cell = height / rows
        for i, j in np.ndindex(grid.shape):
            y = height - cell * i - 0.3 - 3.5 * (j + 1)
            box = [left / width, (y + 0.5) / height, 1 - (left + right) / width, (3.5 - 0.95) / height]
            grid[i, j].set_position(box)
        return
    cell = (height - 0.15) / rows
    panel = (width - (left + right) * columns) / columns
    for i, row in enumerate(grid):
        for j, axes in enumerate(row):
            x, y = left + j * (panel + left + right), height - 0.15 - cell * (i + 1) + bottom
            axes.set_position([x / width, y / height, panel / width, (cell - top - bottom) / height])


def _heading(figure, axes, title, rows, narrow):
    """The group's title above its panels and, below the cost panels, the methods that have no cost here."""
    width, height = figure.get_size_inches()
    top = axes[0].get_position()
    figure.text(0.1 / width, top.y1 + (0.5 if narrow else 0.42) / height, title, fontsize=10, fontweight="bold",
                color=GREY)  # fmt: skip
    note = "★ the 16-bit baseline   ● measured here   ○ simulated: no cost   line: Pareto front"
    simulated = rows[rows["status"] == "simulated"]["method"].tolist()
    if simulated:
        note += "\nSimulated here: " + ", ".join(simulated)
    note = "\n".join(textwrap.fill(line, 62 if narrow else 150) for line in note.splitlines())
    below = axes[2].get_position().y0 - 0.52 / height if narrow else top.y0 - 0.58 / height
    figure.text(0.1 / width, below, note, fontsize=7.5, color=GREY, va="top", linespacing=1.35)


def _panel(axes, rows, cost, quality, colours, narrow, front=False):
    """One scatter of a quality over a cost; better is up and to the left."""
    sign = 1 if HIGHER_IS_BETTER[quality] else -1
    rows = rows[rows[cost].notna() & (rows[quality].notna() | rows["baseline"].astype(bool))]
    if rows.empty:
        return _empty(axes, "No method was measured here.")
    has_value = rows[quality].notna().to_numpy()
    ceiling = _limits(axes, rows, cost, quality, sign)
    x = rows[cost].to_numpy(float)
    y = np.where(has_value, rows[quality].to_numpy(float), ceiling)
    axes.set_xscale("log")
    _cost_ticks(axes)
    if not has_value.all():
        axes.axhline(ceiling, color=PALE, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    lines = []
    if front:
        keep = pareto(np.column_stack([x, np.where(has_value, sign * y, np.inf)]))
        axes.step(x[keep], y[keep], where="post", color=GREY, linewidth=1, alpha=0.7, zorder=2)
        steps = list(zip(x[keep], y[keep], x[keep][1:], y[keep][1:], strict=False))
        lines = [(x0, y0, x1, y0) for x0, y0, x1, _ in steps] + [(x1, y0, x1, y1) for _, y0, x1, y1 in steps]
    bars = lines + [
        box for i in range(len(rows)) for box in _bars(axes, rows.iloc[i], cost, quality, x[i], y[i], colours)
    ]
    for (_, row), px, py in zip(rows.iterrows(), x, y, strict=True):
        _marker(axes, row, px, py, colours)
    names = [_label(row, quality) for _, row in rows.iterrows()]
    inks = [_colour(row, colours) for _, row in rows.iterrows()]
    labels.place(axes, np.column_stack([x, y]), names, inks, bars, size=7.5 if not narrow else 8)
    estimated = cost == "energy_j" and (rows["energy_estimated"] == True).any()  # noqa: E712 (None is neither)
    kind = "size of the quantized weights (MB)" if cost == "size_mb" else COST[cost]
    axes.set_xlabel(kind + (", estimated" if estimated else ""))
    features = next(iter(rows["features"].dropna()), None) if quality in ("fid", "kid") else None
    name = QUALITY[quality] + (f", {features} features" if features else "")
    axes.set_title(f"{'↑' if sign > 0 else '↓'} {name}", fontsize=8.5, pad=6)
    axes.tick_params(labelsize=8)
    axes.grid(color="#eef0f2", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)


def _limits(axes, rows, cost, quality, sign):
    """Set the axes' limits with room for names; return the height at which a baseline without a value stands."""
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
    if unvalued:  # the scale ends below the baseline
        ticks = [t for t in ticker.MaxNLocator(6).tick_values(low, high) if near < t < ceiling - 0.1 * span]
        axes.yaxis.set_major_locator(ticker.FixedLocator(ticks))
    columns = [cost] if cost == "size_mb" else [cost, f"{cost}_low", f"{cost}_high"]
    costs = rows[columns].to_numpy(float)
    costs = costs[np.isfinite(costs) & (costs > 0)]
    room = max((costs.max() / costs.min()) ** 0.22, 1.08)
    axes.set_xlim(costs.min() / room, costs.max() * room)
    return ceiling


def _cost_ticks(axes):
    """Few ticks with plain numbers on a log axis, however short it is."""
    low, high = axes.get_xlim()
    if high / low > 8:
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    else:
        ticks = [t for t in ticker.MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high) if low < t < high]
        axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def _colour(row, colours):
    return INK if row["baseline"] else colours.get(row["solver"], GREY)


def _label(row, quality):
    if row["baseline"] and pd.isna(row[quality]):
        return f"{row['method']} (the reference)"
    return row["method"]


def _marker(axes, row, x, y, colours):
    if row["baseline"]:
        axes.plot(x, y, marker="*", markersize=13, color=INK, zorder=4)
        return
    hollow = row["status"] == "simulated"
    colour = _colour(row, colours)
    axes.plot(x, y, marker="o", markersize=6.5, markeredgewidth=1.3, markeredgecolor=colour, zorder=4,
              markerfacecolor="white" if hollow else colour)  # fmt: skip


def _bars(axes, row, cost, quality, x, y, colours):
    """Draw the intervals on both axes; return their boxes in data coordinates."""
    boxes, colour = [], _colour(row, colours)
    low, high = (row.get(f"{cost}_low"), row.get(f"{cost}_high")) if cost != "size_mb" else (None, None)
    if pd.notna(low) and pd.notna(high):
        axes.plot([low, high], [y, y], color=colour, linewidth=1.4, alpha=0.75, zorder=3)
        boxes.append((low, y, high, y))
    low, high = row[f"{quality}_low"], row[f"{quality}_high"]
    if pd.notna(low) and pd.notna(high):
        axes.plot([x, x], [low, high], color=colour, linewidth=1.4, alpha=0.75, zorder=3)
        boxes.append((x, low, x, high))
    return boxes


def _empty(axes, text):
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(text, 34), ha="center", va="center", color=GREY, transform=axes.transAxes)


def _sentence_figure(text, narrow):
    figure = Figure(figsize=(4.6 if narrow else 9, 1.2), dpi=100)
    _empty(figure.add_axes((0, 0, 1, 1)), text)
    return figure


# --- errors of the layers -------------------------------------------------------------------------------------------


def layer_error(inputs, narrow):
    """Relative error of every quantized layer, one line of dots per method; the worst layer is named.

    Solvers that saw calibration inputs report the error of the output, the others that of the weights: two panels,
    because the two do not compare.
    """
    layers = inputs.layers
    layers = layers[layers["relative_error"].notna() & (layers["relative_error"] > 0)]
    if layers.empty:
        return _sentence_figure("No layer was quantized.", narrow)
    panels = {key: rows for key, rows in layers.groupby(["model", "error_of"], sort=False)}
    counts = [rows["method"].nunique() for rows in panels.values()]
    line, edge = 0.46, 1.05
    figure = Figure(figsize=(4.6 if narrow else 9, sum(counts) * line + edge * len(panels)), dpi=100)
    width, height = figure.get_size_inches()
    colours, top = solver_colours(inputs.summary), height
    solvers = inputs.summary.drop_duplicates(["model", "method"]).set_index(["model", "method"])["solver"]
    left = (0.25 + 0.078 * layers["method"].str.len().max()) / width
    for ((model, error_of), rows), count in zip(panels.items(), counts, strict=True):
        top -= count * line + edge
        axes = figure.add_axes((left, (top + 0.55) / height, 0.975 - left, count * line / height))
        _layer_panel(axes, rows, solvers.get(model, {}), colours)
        axes.set_title(f"{model}: error of each layer's {error_of}", pad=10)
    return figure


def _layer_panel(axes, layers, solvers, colours):
    medians = layers.groupby("method", sort=False)["relative_error"].median().sort_values(kind="stable")
    names = _short(layers["layer"])
    low, high = layers["relative_error"].min(), layers["relative_error"].max()
    room = (high / low) ** 0.04 or 1.1
    axes.set_xlim(low / room, high * room)
    axes.set_xscale("log")
    for line, (method, median) in enumerate(medians.items()):
        rows = layers[layers["method"] == method]
        colour = colours.get(solvers.get(method), GREY)
        spread = ((np.arange(len(rows)) * 0.618034) % 1 - 0.5) * 0.3
        axes.scatter(rows["relative_error"], line + spread, s=15, color=colour, alpha=0.5, linewidths=0, zorder=3)
        axes.plot([median] * 2, [line - 0.28, line + 0.28], color=INK, linewidth=1.6, zorder=4)
        worst = rows["relative_error"].idxmax()
        x = rows.loc[worst, "relative_error"]
        right = np.log(x / low) > 0.45 * np.log(high / low)
        axes.text(x, line - 0.27, names[worst], fontsize=6.5, color=GREY, ha="right" if right else "left", va="bottom")
    axes.set_yticks(range(len(medians)), medians.index)
    axes.set_ylim(len(medians) - 0.5, -0.65)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("relative error (log); bar: median; name: worst layer")
    axes.grid(axis="x", color="#eef0f2", zorder=0)
    axes.set_axisbelow(True)


def _short(names):
    """Layer names without the first part where all share it."""
    heads = {name.split(".")[0] for name in names}
    return names.str.split(".", n=1).str[-1] if len(heads) == 1 else names


# --- power trace ----------------------------------------------------------------------------------------------------


def power_trace(inputs, narrow):
    """The baseline's sampled power over time, with its idle power."""
    found = []
    for _, row in inputs.summary[inputs.summary["baseline"].astype(bool)].iterrows():
        trace = _trace(inputs.results, row)
        if trace is not None:
            found.append((row, *trace))
    if not found:
        return _sentence_figure("No power was sampled: " + _why_no_energy(inputs.summary), narrow)
    figure = Figure(figsize=(4.6 if narrow else 9, 2.7 * len(found)), dpi=100)
    figure.subplots_adjust(left=0.13 if narrow else 0.07, right=0.98, top=1 - 0.4 / (2.7 * len(found)),
                           bottom=0.55 / (2.7 * len(found)), hspace=0.6)  # fmt: skip
    for axes, (row, seconds, watts, spans) in zip(
        figure.subplots(len(found), 1, squeeze=False)[:, 0], found, strict=True
    ):
        for start, end in spans:
            axes.axvspan(start, end, color="#eef3f8", linewidth=0, zorder=0)
        _draw_trace(axes, seconds, watts)
        if pd.notna(row["idle_w"]):
            axes.axhline(row["idle_w"], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        estimated = ", estimated" if row["meter"] == "estimate" else ""
        idle = f"; dashed: idle {row['idle_w']:.3g} W" if pd.notna(row["idle_w"]) else ""
        axes.set_title(f"{row['model']} {row['method']}: power (W{estimated}){idle}")
        axes.set_xlabel("seconds" + ("; energy blocks shaded" if spans else ""))
        axes.set_ylim(0, None)
        axes.set_xlim(seconds.min(), seconds.max())
    return figure


def _trace(results, row):
    """(seconds, watts, [(start, end) of each block]) of a cell's power.csv, or None where it holds no sample."""
    path = Path(results) / "measurements" / row["model"] / row["method"] / row["sampling"] / "power.csv"
    try:
        samples = pd.read_csv(path)
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return None
    time = next((c for c in samples if c in ("t_s", "time_s", "seconds")), None)
    power = next((c for c in samples if c in ("watts", "power_w", "w")), None)
    if time is None or power is None:
        raise DataError(f"{path}: needs a column of seconds (t_s) and one of watts; it has {', '.join(samples)}.")
    samples[[time, power]] = samples[[time, power]].apply(pd.to_numeric, errors="coerce")
    samples = samples.dropna(subset=[time, power])
    if samples.empty:
        return None
    seconds = samples[time].to_numpy() - samples[time].iloc[0]
    spans = []
    if "block" in samples:
        names = samples["block"].astype(str).to_numpy()
        blocks = [name for name in dict.fromkeys(names) if not name.startswith("idle")]
        spans = [(seconds[names == name].min(), seconds[names == name].max()) for name in blocks]
    return seconds, samples[power].to_numpy(), spans


def _draw_trace(axes, seconds, watts):
    """The samples as a line; from 3,000 on as mean and range of a thousand stretches."""
    if len(watts) < 3000:
        axes.plot(seconds, watts, color=PALETTE[0], linewidth=0.7)
        return
    edges = np.linspace(0, len(watts), 1001).astype(int)[:-1]
    low, high = np.minimum.reduceat(watts, edges), np.maximum.reduceat(watts, edges)
    mean = np.add.reduceat(watts, edges) / np.diff(np.append(edges, len(watts)))
    axes.fill_between(seconds[edges], low, high, color=PALETTE[0], alpha=0.25, linewidth=0)
    axes.plot(seconds[edges], mean, color=PALETTE[0], linewidth=0.7)


def _why_no_energy(summary):
    reasons = summary.loc[summary["baseline"].astype(bool), "energy_reason"].dropna()
    return str(reasons.iloc[0]).rstrip(".") + "." if len(reasons) else "the meter keeps no samples."


# --- image grid -----------------------------------------------------------------------------------------------------


def image_grid(inputs, narrow):
    """The same prompts and seeds under every method: a row per method, a column per prompt."""
    grids, models = [], {}
    for cell in inputs.cells:
        models.setdefault((cell["model"], cell["sampling"]), []).append(cell)
    for key, cells in models.items():
        sets = [(cell, *_image_set(inputs.results, cell)) for cell in cells]
        full = [(cell, path, images) for cell, path, images in sets if images]
        if full:
            chosen = choose_prompts([image["prompt"] for image in full[0][2]], PROMPTS_NARROW if narrow else PROMPTS)
            grids.append((key, full, chosen))
    if not grids:
        return _sentence_figure("No image was generated.", narrow)
    return _grid_figure(inputs.summary, grids, narrow)


def _image_set(results, cell):
    path = Path(results) / "images" / cell["model"] / cell["method"] / cell["sampling"] / "manifest.json"
    return path, read_json(path)["images"]


def choose_prompts(prompts, n):
    """Indices of `n` prompts: the first ones, half with one object and half with two where prompts describe scenes."""
    from quantwatt import scenes

    try:
        pairs = [scenes.parse(prompt).relation is not None for prompt in prompts]
    except ValueError:
        return list(range(min(n, len(prompts))))
    single = [i for i, pair in enumerate(pairs) if not pair][: n // 2]
    double = [i for i, pair in enumerate(pairs) if pair][: n - len(single)]
    return (single + double + [i for i in range(len(prompts)) if i not in single + double])[:n]


def _grid_figure(summary, grids, narrow):
    gap, left, pixels = 6, 200, 22 if narrow else 19
    tiles = [[[_tile(path, images[i]) for i in chosen] for _, path, images in full] for _, full, chosen in grids]
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
    for ((model, sampling), full, chosen), grid in zip(grids, tiles, strict=True):
        axes.text(8, y + 24, f"{model} · {sampling}", fontsize=font * 1.15, fontweight="bold", color=GREY, va="center")
        y += 44
        for k, i in enumerate(chosen):
            text = textwrap.fill(
                full[0][2][i]["prompt"], wrap, max_lines=lines, break_long_words=False, placeholder=" …"
            )
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


def _row_label(cell, values):
    key = (cell["model"], cell["method"], cell["sampling"])
    text = cell["method"]
    if key in values.index:
        row = values.loc[key]
        if pd.notna(row["psnr_db"]):
            text += f"\n{row['psnr_db']:.1f} dB"
        if row["baseline"]:
            text += "\nreference"
        elif row["status"] == "simulated":
            text += "\nsimulated"
    return text


def _tile(manifest, image):
    """Pixels uint8 [h, w, 3] of one image: small ones enlarged by a whole factor without smoothing."""
    verify_files(manifest, {image["file"]: {"sha256": image["sha256"], "bytes": image["bytes"]}})
    with Image.open(Path(manifest).parent / image["file"]) as opened:
        picture = opened.convert("RGB")
    if max(picture.size) > 2 * TILE:
        picture.thumbnail((2 * TILE, 2 * TILE), Image.Resampling.LANCZOS)
        return np.asarray(picture)
    factor = -(-TILE // max(picture.size))
    return np.asarray(picture).repeat(factor, 0).repeat(factor, 1)


FIGURES = {
    "quality_vs_cost": quality_vs_cost,
    "layer_error": layer_error,
    "power_trace": power_trace,
    "image_grid": image_grid,
}
