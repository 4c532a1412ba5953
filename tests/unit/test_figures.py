import json

import numpy as np
import pytest
import synthetic_results as synthetic
from PIL import Image

from quantwatt import figures, labels, tables
from quantwatt.manifest import DataError

NAMES = list(figures.FIGURES)


def inputs_of(results, cells):
    read = tables.read_cells(results, cells, synthetic.METRICS)
    tables.write_table(results / "tables" / "summary.csv", tables.summary_table(read, "bf16"))
    tables.write_table(results / "tables" / "layers.csv", tables.layers_table(read))
    summary, layers = (tables.read_table(results / "tables" / f"{name}.csv") for name in ("summary", "layers"))
    return figures.Inputs(summary, layers, results, tuple(cells))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    results = tmp_path_factory.mktemp("figures")
    return inputs_of(results, synthetic.write_tree(results, failures={"gptq-w2a16": ("oom", "out of memory")}))


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
    figure = figures.quality_vs_cost(inputs, narrow=False)
    assert len(points(figure, 0)) == len(points(figure, 1)) == 3  # bf16, rtn-w8a8, nf4
    assert all(filled for filled, *_ in points(figure, 0))
    assert sorted(filled for filled, *_ in points(figure, 2)) == [False] * 6 + [True] * 3
    assert "estimated" in figure.axes[0].get_xlabel()
    assert any("Simulated here: rtn-w4a16" in text.get_text() for text in figure.texts)


@pytest.mark.parametrize("narrow", [False, True])
def test_names_do_not_overlap(inputs, narrow):
    figure = figures.quality_vs_cost(inputs, narrow)
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        for i, a in enumerate(boxes):
            assert not any(a.overlaps(b) for b in boxes[:i]), axes.texts[i].get_text()


def test_labels_of_coinciding_points_are_apart():
    figure = figures.Figure(figsize=(4, 3), dpi=100)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    labels.place(axes, [[0.5, 0.5]] * 5, ["gptq-w4a8"] * 5, ["black"] * 5)
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in axes.texts]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_pareto():
    assert figures.pareto([[1, 5], [2, 4], [2, 7], [3, 7], [4, np.inf]]) == [0, 2, 4]


def test_each_device_has_its_own_row_of_panels(tmp_path):
    devices = dict.fromkeys(synthetic.METHODS, synthetic.CPU) | {"rtn-w8a8": synthetic.GPU}
    inputs = inputs_of(tmp_path, synthetic.write_tree(tmp_path, device=devices, with_images=False))
    assert len(figures.quality_vs_cost(inputs, narrow=False).axes) == 6


@pytest.mark.parametrize("name", NAMES)
def test_a_fake_device_is_written_across(name, tmp_path):
    inputs = inputs_of(tmp_path, synthetic.write_tree(tmp_path, device=synthetic.FAKE, meter="nvml"))
    figures.draw(name, inputs, tmp_path / name)
    for file in (f"{name}.svg", f"{name}-narrow.svg"):
        assert "fake-watermark" in (tmp_path / file).read_text()


def test_without_energy_time_is_the_cost_and_the_trace_says_why(tmp_path):
    cells = synthetic.write_tree(tmp_path, meter="rapl", energy_reason="rapl is unreadable", with_images=False)
    inputs = inputs_of(tmp_path, cells)
    assert figures.quality_vs_cost(inputs, narrow=False).axes[0].get_xlabel() == "time per image (s)"
    text = figures.power_trace(inputs, narrow=False).axes[0].texts[0].get_text()
    assert " ".join(text.split()) == "No power was sampled: rapl is unreadable."


def test_when_nothing_ran_every_figure_says_so(tmp_path):
    failures = dict.fromkeys(synthetic.METHODS, ("unsupported", "no"))
    inputs = inputs_of(tmp_path, synthetic.write_tree(tmp_path, failures=failures, with_images=False))
    for name in NAMES:
        figures.draw(name, inputs, tmp_path / name)


def test_prompts_are_half_of_one_object():
    from quantwatt import scenes

    prompts = [scenes.caption(scene) for scene in scenes.random_scenes(40, np.random.default_rng(0))]
    pairs = [scenes.parse(prompts[i]).relation is not None for i in figures.choose_prompts(prompts, 8)]
    assert pairs == [False] * 4 + [True] * 4
    assert figures.choose_prompts(["a cat", "a dog"], 8) == [0, 1]


def test_small_images_are_enlarged_without_smoothing(inputs):
    manifest, images = figures._image_set(inputs.results, inputs.cells[0])
    tile = figures._tile(manifest, images[0])
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
