"""Place the names of points in a plot so that they cover neither one another nor a point."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

_DISTANCES = (9, 15, 23, 33, 45, 60, 78)  # points from the marker to the near edge of its name
_ANGLES = np.deg2rad([0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240])
_MARKER = 5.5  # half width of a marker's box, in points
_PASSES = 3


def place(axes, points, texts, colours, obstacles=(), size=8):
    """Write each text near its point, with a thin line to it where it had to move away.

    The axes' limits and the figure's layout must be final.

    Args:
        points: [n, 2] in data coordinates.
        texts, colours: n names and their colours.
        obstacles: boxes (x0, y0, x1, y1) in data coordinates that names should not cover, such as error bars.
        size: font size in points.
    """
    if not len(points):
        return
    scale = axes.figure.dpi / 72
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    anchors = axes.transData.transform(np.asarray(points, dtype=float))  # [n, 2] pixels
    sizes = np.array([_extent(axes, text, size, renderer) for text in texts])  # [n, 2] pixels
    window = axes.get_window_extent(renderer)
    boxes = [_around(anchor, _MARKER * scale) for anchor in anchors]
    for x0, y0, x1, y1 in obstacles:
        (left, below), (right, above) = axes.transData.transform([(x0, y0), (x1, y1)])
        boxes.append((min(left, right) - 2, min(below, above) - 2, max(left, right) + 2, max(below, above) + 2))
    candidates = [_candidates(a, s, scale) for a, s in zip(anchors, sizes, strict=True)]
    chosen: list = [None] * len(texts)
    crowded = np.argsort([np.sort(np.hypot(*(anchors - a).T))[:4].sum() for a in anchors], kind="stable")
    for _ in range(_PASSES):
        for i in crowded:
            others = [box for j, box in enumerate(chosen) if box is not None and j != i]
            lines = [(anchors[j], box) for j, box in enumerate(chosen) if box is not None and j != i]
            costs = [_cost(box, d, i, anchors, boxes, others, lines, window) for box, d in candidates[i]]
            chosen[i] = candidates[i][int(np.argmin(costs))][0]
    for anchor, box, text, colour in zip(anchors, chosen, texts, colours, strict=True):
        _draw(axes, anchor, box, text, colour, size, scale)


def _extent(axes, text, size, renderer):
    probe = axes.text(0, 0, text, fontsize=size)
    box = probe.get_window_extent(renderer)
    probe.remove()
    return box.width + 2, box.height


def _candidates(anchor, size, scale):
    """[(box, distance)] of a text's possible places around its point, in pixels."""
    half = size / 2
    found = []
    for distance in _DISTANCES:
        for angle in _ANGLES:
            way = np.array([np.cos(angle), np.sin(angle)])
            centre = anchor + way * distance * scale + np.sign(np.round(way, 6)) * half * np.abs(way) ** 0.5
            found.append(((*(centre - half), *(centre + half)), distance))
    return found


def _cost(box, distance, i, anchors, boxes, others, lines, window):
    x0, y0, x1, y1 = box
    outside = max(window.x0 - x0, 0) + max(x1 - window.x1, 0) + max(window.y0 - y0, 0) + max(y1 - window.y1, 0)
    covered = sum(_overlap(box, other) for other in others) * 4 + sum(_overlap(box, other) for other in boxes)
    line = _samples(anchors[i], box)
    crossed = sum(_inside(line, other) for other in others)
    crossed += sum(_inside(line, other) for j, other in enumerate(boxes[: len(anchors)]) if j != i)
    crossed += sum(_inside(_samples(anchor, other), box) for anchor, other in lines)
    return outside * 50 + covered + crossed * 60 + distance * 1.5


def _around(point, half):
    return point[0] - half, point[1] - half, point[0] + half, point[1] + half


def _overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _end(anchor, box):
    """The point of the box nearest to the anchor."""
    return np.clip(anchor, box[:2], box[2:])


def _samples(anchor, box):
    return anchor + np.linspace(0.15, 0.95, 8)[:, None] * (_end(anchor, box) - anchor)  # [8, 2]


def _inside(points, box):
    x, y = points.T
    return bool(((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])).any())


def _draw(axes, anchor, box, text, colour, size, scale):
    back = axes.transData.inverted()
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    end = _end(anchor, box)
    if np.hypot(*(end - anchor)) > 13 * scale:
        (x0, y0), (x1, y1) = back.transform([anchor, end])
        axes.plot([x0, x1], [y0, y1], color=colour, linewidth=0.5, alpha=0.6, zorder=2.5)
    axes.text(*back.transform(centre), text, fontsize=size, color=colour, ha="center", va="center", zorder=5,
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85})  # fmt: skip
