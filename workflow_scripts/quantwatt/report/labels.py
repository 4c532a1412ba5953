"""Place the labels of points in a plot so that no label covers another label, and where there is room no point.

adjustText leaves labels on markers and error bars, and takes up to seven times longer.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from quantwatt.report.figures import STYLE

_DISTANCES = (9, 15, 23, 33, 45, 60, 78)  # points from the marker to the nearest edge of its label
_ANGLES = np.deg2rad([0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240])
_MARKER = 5.5  # half width of a marker's box, in points
_PASSES = 3
_FREE = 26  # of `_costs`, a place that covers nothing, is crossed by no line and is at most 15 points away


def place(
    axes: Axes,
    points: np.ndarray | Sequence[Sequence[float]],
    texts: Sequence[str],
    colours: Sequence[str],
    obstacles: Iterable[Sequence[float]] = (),
    size: float = 8,
    needed: int | None = None,
) -> None:
    """Write each text near its point; a thin line joins them where the text is farther away.

    A text for which no place is free is left out, the last ones first. The axes' limits and the figure's layout must be
    final.

    Args:
        points: [n, 2] in data coordinates; the first `len(texts)` have a label, of all the marker stays free.
        texts, colours: labels, the most important first, and their colours.
        obstacles: boxes (x0, y0, x1, y1) in data coordinates that labels should not cover, such as error bars.
        size: font size in points.
        needed: texts after so many are written only where there is room beside their points; all are needed by default.
    """
    if not len(texts):
        return
    scale = axes.figure.dpi / 72
    renderer = FigureCanvasAgg(axes.figure).get_renderer()  # ty: ignore[invalid-argument-type]
    every = axes.transData.transform(np.asarray(points, dtype=float))  # [n, 2] pixels
    anchors = every[: len(texts)]
    sizes = np.array([_extent(axes, text, size, renderer) for text in texts])  # [n, 2] pixels
    window = axes.get_window_extent(renderer)
    markers = np.concatenate([every - _MARKER * scale, every + _MARKER * scale], axis=1)
    boxes = np.array([*markers, *_pixels(axes, obstacles)])
    window = np.array([window.x0, window.y0, window.x1, window.y1])
    candidates = [_candidates(a, s, scale) for a, s in zip(anchors, sizes, strict=True)]
    chosen = np.full((len(texts), 4), np.nan)
    crowded = np.argsort([np.sort(np.hypot(*(every - a).T))[:4].sum() for a in anchors], kind="stable")
    needed = len(texts) if needed is None else needed
    turns = [*[i for i in crowded if i < needed] * _PASSES, *range(needed, len(texts))]
    for i in turns:
        placed = np.flatnonzero(~np.isnan(chosen[:, 0]) & (np.arange(len(texts)) != i))
        others, lines = chosen[placed], _samples(anchors[placed], chosen[placed])
        costs = _costs(*candidates[i], anchors[i], np.delete(markers, i, axis=0), boxes, others, lines, window)
        if i < needed or costs.min() < _FREE:
            chosen[i] = candidates[i][0][np.argmin(costs)]
    drawn = np.empty((0, 4))
    for anchor, box, text, colour in zip(anchors, chosen, texts, colours, strict=True):
        if not np.isnan(box[0]) and not _overlap(box[None], drawn).any():
            _draw(axes, anchor, box, text, colour, size, scale)
            drawn = np.vstack([drawn, box])


def _pixels(axes, obstacles):
    """Yield boxes of data coordinates in pixels, with a margin of 2 pixels."""
    for x0, y0, x1, y1 in obstacles:
        (left, below), (right, above) = axes.transData.transform([(x0, y0), (x1, y1)])
        yield min(left, right) - 2, min(below, above) - 2, max(left, right) + 2, max(below, above) + 2


def digits(value: float) -> str:
    """A number with three digits that count: 0.0610, 1.60, 24.1, 149,000, 3.27 million."""
    if abs(value) >= 1e6:
        return f"{digits(value / 1e6)} million"
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def width(text: str, size: float) -> float:
    """Width in inches of a text of a font size in points, in the figures' font."""
    font = FontProperties(family=STYLE["font.family"], size=size)
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] / 72


def _extent(axes, text, size, renderer):
    probe = axes.text(0, 0, text, fontsize=size)
    box = probe.get_window_extent(renderer)
    probe.remove()
    return box.width + 2, box.height


def _candidates(anchor, size, scale):
    """Possible boxes [candidates, 4] (pixels) of a text around its point, and their distances [candidates] (points)."""
    half, boxes, distances = size / 2, [], []
    for distance in _DISTANCES:
        for angle in _ANGLES:
            way = np.array([np.cos(angle), np.sin(angle)])
            centre = anchor + way * distance * scale + np.sign(np.round(way, 6)) * half * np.abs(way) ** 0.5
            boxes.append((*(centre - half), *(centre + half)))
            distances.append(distance)
    return np.array(boxes), np.array(distances)


def _costs(candidates, distances, anchor, markers, boxes, others, lines, window):
    """Cost of each candidate box of a label: outside the axes, overlapping, crossed by a line, far from its point."""
    beyond = np.concatenate([window[:2] - candidates[:, :2], candidates[:, 2:] - window[2:]], axis=1)
    covered = _overlap(candidates, others).sum(1) * 4 + _overlap(candidates, boxes).sum(1) * 3
    candidate_lines = _samples(anchor, candidates)
    crossed = _crossing(candidate_lines, np.concatenate([others, markers])).sum(1) + _crossing(lines, candidates).sum(0)
    return np.maximum(beyond, 0).sum(1) * 50 + covered + crossed * 60 + distances * 1.5


def _overlap(a, b):
    """Overlap areas [a, b] of the boxes of two lists."""
    a, b = a[:, None], b[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.prod(np.maximum(sides, 0), axis=-1)


def _samples(anchors, boxes):
    """Eight points [boxes, 8, 2] on each line from an anchor ([2] or [boxes, 2]) to the nearest point of its box."""
    anchors = np.broadcast_to(anchors, (len(boxes), 2))
    ends = np.clip(anchors, boxes[:, :2], boxes[:, 2:])
    return anchors[:, None] + np.linspace(0.15, 0.95, 8)[:, None] * (ends - anchors)[:, None]


def _crossing(lines, boxes):
    """Boolean [lines, boxes]: whether any point of a line lies in a box."""
    points, boxes = lines[:, None], boxes[None, :, None]
    return ((points > boxes[..., :2]) & (points < boxes[..., 2:])).all(-1).any(-1)


def _draw(axes, anchor, box, text, colour, size, scale):
    back = axes.transData.inverted()
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    end = np.clip(anchor, box[:2], box[2:])
    if np.hypot(*(end - anchor)) > 13 * scale:
        (x0, y0), (x1, y1) = back.transform([anchor, end])
        axes.plot([x0, x1], [y0, y1], color=colour, linewidth=0.5, alpha=0.6, zorder=2.5)
    axes.text(*back.transform(centre), text, fontsize=size, color=colour, ha="center", va="center", zorder=5,
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85})  # fmt: skip


def column(
    axes: Axes,
    ends: np.ndarray | Sequence[Sequence[float]],
    texts: Sequence[str],
    colours: Sequence[str],
    size: float = 8,
) -> None:
    """Write each text right of the axes, as close to the height of its line's end as the other texts allow.

    The axes' limits and the figure's layout must be final.

    Args:
        ends: [n, 2] in data coordinates, the right ends of lines.
        texts, colours: n labels and their colours.
        size: font size in points.
    """
    if not len(ends):
        return
    scale = axes.figure.dpi / 72
    renderer = FigureCanvasAgg(axes.figure).get_renderer()  # ty: ignore[invalid-argument-type]
    window, back = axes.get_window_extent(renderer), axes.transAxes.inverted()
    anchors = axes.transData.transform(np.asarray(ends, dtype=float))  # [n, 2] pixels
    gap = max(_extent(axes, text, size, renderer)[1] for text in texts)
    heights = apart(anchors[:, 1], gap, window.y0 + gap / 2, window.y1 - gap / 2)
    for anchor, height, text, colour in zip(anchors, heights, texts, colours, strict=True):
        right = window.x1 + 9 * scale
        (x0, y0), (x1, y1) = back.transform([(anchor[0] + 3 * scale, anchor[1]), (right - 2 * scale, height)])
        axes.plot([x0, x1], [y0, y1], color=colour, linewidth=0.5, alpha=0.6, transform=axes.transAxes, clip_on=False)
        x, y = back.transform((right, height))
        axes.text(x, y, text, fontsize=size, color=colour, va="center_baseline",
                  transform=axes.transAxes)  # fmt: skip


def apart(heights: np.ndarray | Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Heights moved as little as possible (least squares) so that they are `gap` apart, in [low, high] if they fit."""
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(order))
    pools = []  # [mean, count] of neighbours at the smallest gap: pool adjacent violators
    for value in np.asarray(heights, dtype=float)[order] - steps:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (a, n), (b, m) = pools.pop(-2), pools.pop()
            pools.append([(n * a + m * b) / (n + m), n + m])
    level = np.concatenate([np.full(count, mean) for mean, count in pools])
    moved = np.empty(len(order))
    moved[order] = level.clip(low, max(low, high - steps[-1])) + steps
    return moved
