import json

import numpy as np
import pytest
import synthetic_results as synthetic
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from quantwatt import figures, labels, layers, scenes, tables
from quantwatt.cells import read_cells
from quantwatt.figures import image_grid, layer_depth, layer_error, power_trace, quality_vs_cost, seeds
from quantwatt.manifest import DataError

NAMES = figures.NAMES


def inputs_of(results, cells):
    read = read_cells(results, cells, synthetic.METRICS)
    tables.write_table(results / "tables" / "summary.csv", tables.summary_table(read, "bf16", synthetic.SEEDS))
    tables.write_table(results / "tables" / "layers.csv", layers.layers_table(read))
    summary, errors = (tables.read_table(results / "tables" / f"{name}.csv") for name in ("summary", "layers"))
    return figures.Inputs(summary, errors, results, tuple(cells))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    results = tmp_path_factory.mktemp("figures")
    return inputs_of(results, synthetic.write_tree(results, failures={"gptq-w2a16": ("oom", "out of memory")}))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """25 methods under three seeds."""
    results = tmp_path_factory.mktemp("many")
    return inputs_of(results, synthetic.write_many(results))


@pytest.mark.parametrize("name", NAMES)
def test_png_and_svgs_are_written_and_the_same_twice(inputs, name, tmp_path):
    for folder in ("one", "two"):
        figures.draw(name, inputs, tmp_path / folder / name)
    for file in (f"{name}.png", f"{name}.svg", f"{name}-narrow.svg"):
        first, second = ((tmp_path / folder / file).read_bytes() for folder in ("one", "two"))
        assert first == second, file
    assert Image.open(tmp_path / "one" / f"{name}.png").size[0] > 1000
    assert b"<dc:date>" not in (tmp_path / "one" / f"{name}.svg").read_bytes()


def points(figure, panel):
    """The markers of a panel: [(filled, x, y)]."""
    lines = [line for line in figure.axes[panel].lines if line.get_marker() in ("o", "*")]
    return [(line.get_markerfacecolor() != "white", *line.get_xydata()[0]) for line in lines]


def test_simulated_methods_are_only_in_the_size_panel(inputs):
    figure = quality_vs_cost.draw(inputs, narrow=False)
    assert len(points(figure, 0)) == len(points(figure, 1)) == 3  # bf16, rtn-w8a8, nf4
    assert all(filled for filled, *_ in points(figure, 0))
    assert sorted(filled for filled, *_ in points(figure, 2)) == [False] * 6 + [True] * 3
    assert "estimated" in figure.axes[0].get_xlabel()
    assert any("Simulated here: rtn-w4a16" in text.get_text() for text in figure.texts)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("which", ["inputs", "many"])
def test_names_do_not_overlap(which, narrow, request):
    figure = quality_vs_cost.draw(request.getfixturevalue(which), narrow)
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        for i, a in enumerate(boxes):
            assert not any(a.overlaps(b) for b in boxes[:i]), axes.texts[i].get_text()


def test_labels_of_coinciding_points_are_apart():
    figure = Figure(figsize=(4, 3), dpi=100)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    labels.place(axes, [[0.5, 0.5]] * 5, ["gptq-w4a8"] * 5, ["black"] * 5)
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in axes.texts]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_pareto():
    assert quality_vs_cost.pareto([[1, 5], [2, 4], [2, 7], [3, 7], [4, np.inf]]) == [0, 2, 4]


def test_each_device_has_its_own_row_of_panels(tmp_path):
    devices = dict.fromkeys(synthetic.METHODS, synthetic.CPU) | {"rtn-w8a8": synthetic.GPU}
    inputs = inputs_of(tmp_path, synthetic.write_tree(tmp_path, device=devices, with_images=False))
    assert len(quality_vs_cost.draw(inputs, narrow=False).axes) == 6


@pytest.mark.parametrize("name", NAMES)
def test_a_fake_device_is_written_across(name, tmp_path):
    inputs = inputs_of(tmp_path, synthetic.write_tree(tmp_path, device=synthetic.FAKE, meter="nvml"))
    figures.draw(name, inputs, tmp_path / name)
    for file in (f"{name}.svg", f"{name}-narrow.svg"):
        assert "fake-watermark" in (tmp_path / file).read_text()


def test_without_energy_time_is_the_cost_and_the_trace_says_why(tmp_path):
    cells = synthetic.write_tree(tmp_path, meter="rapl", energy_reason="rapl is unreadable", with_images=False)
    inputs = inputs_of(tmp_path, cells)
    assert quality_vs_cost.draw(inputs, narrow=False).axes[0].get_xlabel() == "time per image (s)"
    text = power_trace.draw(inputs, narrow=False).axes[0].texts[0].get_text()
    assert " ".join(text.split()) == "No power was sampled: rapl is unreadable."


def test_when_nothing_ran_every_figure_says_so(tmp_path):
    failures = dict.fromkeys(synthetic.METHODS, ("unsupported", "no"))
    inputs = inputs_of(tmp_path, synthetic.write_tree(tmp_path, failures=failures, with_images=False))
    for name in NAMES:
        figures.draw(name, inputs, tmp_path / name)


def test_prompts_are_half_of_one_object():
    prompts = [scenes.caption(scene) for scene in scenes.random_scenes(40, np.random.default_rng(0))]
    pairs = [scenes.parse(prompts[i]).relation is not None for i in image_grid.choose_prompts(prompts, 8)]
    assert pairs == [False] * 4 + [True] * 4
    assert image_grid.choose_prompts(["a cat", "a dog"], 8) == [0, 1]


def test_small_images_are_enlarged_without_smoothing(inputs):
    manifest, images = image_grid._image_set(inputs.results, inputs.cells[0])
    tile = image_grid._tile(manifest, images[0])
    original = np.asarray(Image.open(manifest.parent / images[0]["file"]))
    assert tile.shape == (128, 128, 3)
    assert (tile[::2, ::2] == original).all() and (tile[1::2, 1::2] == original).all()


def test_a_damaged_image_is_refused(inputs, tmp_path):
    cells = synthetic.write_tree(tmp_path)
    path = tmp_path / "images/tiny-sd3/nf4/steps-20/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["images"] = [image | {"sha256": "0" * 64} for image in manifest["images"]]
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="corrupted"):
        figures.draw("image_grid", inputs_of(tmp_path, cells), tmp_path / "image_grid")


def test_an_unknown_figure_is_refused(inputs, tmp_path):
    with pytest.raises(DataError, match="no figure 'cake'"):
        figures.draw("cake", inputs, tmp_path / "cake")


# --- many methods, three seeds


def test_of_replicates_only_the_first_is_drawn(many):
    assert len(quality_vs_cost.draw(many, narrow=False).axes) == 3
    rows = [text.get_text() for text in image_grid.draw(many, narrow=False).axes[0].texts]
    assert sum(text.startswith("bf16") for text in rows) == 1 and "tiny-sd3 · seed-0" in rows
    assert len(power_trace.draw(many, narrow=False).axes) == 1


def test_every_solver_has_its_own_colour(many):
    colours = figures.solver_colours(many.summary)
    assert len(set(colours.values())) == len(colours) == 7
    assert "gptqmodel" not in colours  # it is not installed, so nothing of it is drawn


def test_what_was_not_measured_is_named(many):
    summary = many.summary.copy()
    summary.loc[summary["method"] == "nf4", "status"] = "unsupported"
    summary.loc[summary["method"] == "nf4", ["energy_j", "latency_s"]] = np.nan
    figure = quality_vs_cost.draw(figures.Inputs(summary), narrow=False)
    assert any("Not measured here: nf4" in text.get_text() for text in figure.texts)
    assert len(points(figure, 0)) == 5 and sum(filled for filled, *_ in points(figure, 2)) == 5


def test_errors_of_layers_before_and_after(many):
    axes = layer_error.draw(many, narrow=False).axes
    assert [panel.get_title().partition(": ")[2] for panel in axes] == [
        "errors of outputs",
        "errors of outputs against the float model's",
        "errors of weights",
    ]
    qronos = many.layers[many.layers["method"] == "qronos-w3a16"]
    before, after, ring = axes[1].collections[-3:]  # the worst method stands last
    assert sorted(before.get_offsets()[:, 0]) == pytest.approx(sorted(qronos["error_before"]))
    assert sorted(after.get_offsets()[:, 0]) == pytest.approx(sorted(qronos["relative_error"]))
    assert ring.get_offsets()[0, 0] == qronos["relative_error"].max()
    ends = axes[1].lines
    medians = [qronos["error_before"].median(), qronos["relative_error"].median()]
    assert any(list(line.get_xdata()) == pytest.approx(medians) for line in ends)
    worst = qronos.loc[qronos["relative_error"].idxmax(), "layer"].removeprefix("transformer_blocks.")
    assert any(worst in text.get_text() for text in axes[1].texts)


@pytest.mark.parametrize("narrow", [False, True])
def test_texts_beside_the_lanes_do_not_overlap(many, narrow):
    figure = layer_error.draw(many, narrow)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        for i, a in enumerate(boxes):
            assert not any(a.overlaps(b) for b in boxes[:i]), axes.texts[i].get_text()
            assert a.x0 >= 0 and a.x1 <= figure.bbox.x1, axes.texts[i].get_text()


def test_a_method_without_an_error_before_has_one_line_of_dots(many):
    only = many.layers[many.layers["method"] == "torchao-int8"]
    [axes] = layer_error.draw(figures.Inputs(many.summary, only), narrow=False).axes
    assert any(text.get_text().startswith("median ") and "→" not in text.get_text() for text in axes.texts)


def test_map_of_errors_by_depth(many):
    rows = many.layers[many.layers["error_of"] == "outputs"]
    maps, kinds = layer_depth.maps_of(rows)
    assert len(kinds) == 14 and "norm1.linear" in kinds  # chunks count to their layer, which gptq-w4a8 has whole
    errors = maps["gptq-w4a8-segments"]
    assert errors.shape == (14, 6)
    own = rows[rows["method"] == "gptq-w4a8-segments"].set_index("layer")["relative_error"]
    chunks = [own[f"transformer_blocks.2.norm1.linear.{chunk}"] for chunk in range(6)]
    assert errors[kinds.index("norm1.linear"), 2] == max(chunks)
    assert errors[kinds.index("ff.net.2"), 4] == own["transformer_blocks.4.ff.net.2"]
    assert np.isnan(errors[kinds.index("ff_context.net.2"), 5]) and np.isnan(errors).sum() == 3


def test_seeds_side_by_side(many):
    [axes] = seeds.draw(many, narrow=False).axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    first = [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots[:3]]
    rows = many.summary[many.summary["method"] == axes.texts[0].get_text()]
    assert [x for x, _ in first] == pytest.approx(list(rows["psnr_db"]))
    assert [round(y, 2) for _, y in first] == [-0.25, 0, 0.25]
    bars = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "None"]
    assert bars[:3] == [
        pytest.approx(list(pair)) for pair in zip(rows["psnr_db_low"], rows["psnr_db_high"], strict=True)
    ]
    assert len(dots) == 3 * 21
