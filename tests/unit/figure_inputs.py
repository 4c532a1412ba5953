"""What figures are drawn from, of a synthetic results tree; and what overlaps in a figure or leaves it."""

import synthetic_results as synthetic
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg

import tables as tables_rule
from quantwatt.report import figures, layer_table, tables
from quantwatt.report.cells import read_cells


def inputs_of(results, cells, baseline="bf16", samplings=synthetic.SEEDS, metrics=synthetic.METRICS, tried=()):
    """The tables of these cells, written and read again."""
    read = read_cells(results, cells, metrics)
    written = {
        "summary": tables.summary_table(read, baseline, samplings),
        "layers": layer_table.layers_table(read),
        "sensitivity": layer_table.sensitivity_table(read, tables_rule.tried_in(results, tried)),
    }
    for name, table in written.items():
        tables.write_table(results / "tables" / f"{name}.csv", table)
    found = {name: tables.read_table(results / "tables" / f"{name}.csv") for name in written}
    return figures.Inputs(**found, results=results, cells=tuple(cells))


def colliding(axes):
    """Pairs of texts in a panel whose boxes overlap."""
    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in axes.texts if text.get_text()]
    return [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[:i] if box.overlaps(other)]


class _Recording(RendererAgg):
    """Notes what text is drawn where: ticks and labels that are hidden or beyond an axis never come here."""

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        wide, tall, _ = self.get_text_width_height_descent(s, prop, ismath)
        if angle:
            wide = tall = max(wide, tall) * 0.7  # of those at 35 degrees and upright ones, the start is looked at
        self.texts.append((s, prop.get_size_in_points(), (x, self.height - y, x + wide, self.height - y + tall)))


def drawn_texts(figure):
    """[(text, size in points, (x0, y0, x1, y1) in pixels)] of all that is written in a figure, line by line."""
    renderer = _Recording(*figure.bbox.size, figure.dpi)
    renderer.texts = []
    FigureCanvasAgg(figure)
    figure.draw(renderer)
    return renderer.texts


def cut(figure):
    """Texts that leave the figure by more than a pixel."""
    width, height = figure.bbox.size + 1
    boxes = [(text, box) for text, _, box in drawn_texts(figure)]
    return [text for text, (x0, y0, x1, y1) in boxes if x0 < -1 or y0 < -1 or x1 > width or y1 > height]
