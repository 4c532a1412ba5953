import itertools
import json

import matplotlib
import numpy as np
import pytest
import synthetic_results as synthetic
from figure_inputs import colliding, cut, drawn_texts, inputs_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from quantwatt import registry
from quantwatt.artifacts import layout
from quantwatt.artifacts.errors import DataError
from quantwatt.data import scenes
from quantwatt.report import figures, labels, layer_table, marks
from quantwatt.report.figures import (
    budget,
    image_grid,
    layer_depth,
    layer_error,
    power_trace,
    quality_vs_cost,
    seeds,
    sensitivity,
    steps,
)

NAMES = layout.FIGURES


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
    """The markers of a panel but mixed methods': [(filled, x, y)]."""
    shapes = {marks.STAR[0], *(shape for shape, _ in marks.SHAPES.values())}
    lines = [line for line in figure.axes[panel].lines if line.get_marker() in shapes]
    return [(line.get_markerfacecolor() != "white", *line.get_xydata()[0]) for line in lines]


def test_simulated_methods_are_only_in_the_size_panel(inputs):
    figure = quality_vs_cost.draw(inputs, narrow=False)
    assert len(points(figure, 0)) == len(points(figure, 1)) == 3  # bf16, rtn-w8a8, nf4
    assert all(filled for filled, *_ in points(figure, 0))
    assert sorted(filled for filled, *_ in points(figure, 2)) == [False] * 6 + [True] * 3
    assert "estimated" in figure.axes[0].get_xlabel()
    assert any("Simulated here: rtn-w4a16" in text.get_text() for text in figure.texts)


def test_labels_of_coinciding_points_are_apart():
    figure = Figure(figsize=(4, 3), dpi=100)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    labels.place(axes, [[0.5, 0.5]] * 5, ["gptq-w4a8"] * 5, ["black"] * 5)
    boxes = [text.get_window_extent(figure.canvas.get_renderer()) for text in axes.texts]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_each_device_has_its_own_row_of_panels(tmp_path):
    devices = dict.fromkeys(synthetic.METHODS, synthetic.CPU) | {"rtn-w8a8": synthetic.GPU}
    inputs = inputs_of(tmp_path, synthetic.write_tree(tmp_path, device=devices, with_images=False))
    assert len(quality_vs_cost.draw(inputs, narrow=False).axes) == 6


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    results = tmp_path_factory.mktemp("fake")
    return inputs_of(results, synthetic.write_tree(results, device=synthetic.FAKE, meter="nvml"))


@pytest.fixture
def coarse(monkeypatch):
    """PNGs of few pixels, where only the SVGs are looked at."""
    monkeypatch.setattr(figures, "DPI", 20)


@pytest.mark.parametrize("name", NAMES)
def test_a_fake_device_is_written_across(name, fake, coarse, tmp_path):
    figures.draw(name, fake, tmp_path / name)
    for file in (f"{name}.svg", f"{name}-narrow.svg"):
        assert "fake-watermark" in (tmp_path / file).read_text()


def test_without_energy_time_is_the_cost_and_the_trace_says_why(tmp_path):
    cells = synthetic.write_tree(tmp_path, meter="rapl", energy_reason="rapl is unreadable", with_images=False)
    inputs = inputs_of(tmp_path, cells)
    assert quality_vs_cost.draw(inputs, narrow=False).axes[0].get_xlabel() == "time per image (s)"
    text = power_trace.draw(inputs, narrow=False).axes[0].texts[0].get_text()
    assert " ".join(text.split()) == "No power was sampled: rapl is unreadable."


def spans_of(axes):
    """[(start, end)] of the shaded blocks and phases."""
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]


def test_power_shows_the_blocks_of_both_sides_and_the_phases(inputs):
    [axes] = power_trace.draw(inputs, narrow=False).axes
    shades = [patch.get_facecolor()[:3] for patch in axes.patches]
    assert len(set(shades)) == 3 and shades[0] != shades[1]  # method, baseline, phases
    assert [text.get_text() for text in axes.texts][:3] == ["text", "denoise", "decode"]
    spans = spans_of(axes)
    assert len(spans) == power_trace.SHADED and spans[0] == pytest.approx((0, 0.7))  # idle time comes before
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert axes.get_xlim()[1] == spans[-1][1]


@pytest.mark.parametrize(("block_s", "drawn", "end"), [(0.3, 24, 7.2), (5, 12, 60), (90, 1, 60)])
def test_power_is_that_of_a_minute_and_no_barcode(tmp_path, inputs, block_s, drawn, end):
    results = tmp_path / "results"
    row = inputs.summary[inputs.summary["method"] == "bf16"].iloc[0]
    path = layout.path(results, "power", row)
    path.parent.mkdir(parents=True)
    lines = [f"{block * block_s + k * block_s / 50},20,{'method baseline'.split()[block % 2]},{process},{block}"
             for process in (0, 1) for block in range(400) for k in range(50)]  # fmt: skip
    path.write_text("\n".join(["t_s,watts,configuration,process,block", *lines]) + "\n")
    [axes] = power_trace.draw(figures.Inputs(inputs.summary, results=results), narrow=False).axes
    assert len(axes.patches) == drawn and axes.get_xlim()[1] == pytest.approx(end, rel=0.05)


def test_when_nothing_ran_every_figure_says_so(coarse, tmp_path):
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


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_large_enough_and_inside(name, narrow, many, coarse):
    with matplotlib.rc_context(figures.STYLE):
        figure = registry.load("figures", name).draw(many, narrow)
    assert [text for text, size, _ in drawn_texts(figure) if size < 7] == []
    assert cut(figure) == []


def test_of_replicates_only_the_first_is_drawn(many):
    assert len(quality_vs_cost.draw(many, narrow=False).axes) == 3
    rows = [text.get_text() for text in image_grid.draw(many, narrow=False).axes[0].texts]
    assert sum(text.startswith("bf16") for text in rows) == 1 and "tiny-sd3 · seed-0" in rows
    assert len(power_trace.draw(many, narrow=False).axes) == 1


def test_every_solver_has_its_own_colour(many):
    colours = figures.solver_colours(many.summary)
    assert len(set(colours.values())) == len(colours) == 9  # of solvers, libraries and codebooks
    assert {"nf4", "fp4", "rtn", "bitsandbytes"} < set(colours)
    assert "gptqmodel" not in colours  # it is not installed, so nothing of it is drawn


def test_what_was_not_measured_is_named(many):
    summary = many.summary.copy()
    summary.loc[summary["method"] == "nf4", "status"] = "unsupported"
    summary.loc[summary["method"] == "nf4", ["energy_j", "latency_s"]] = np.nan
    figure = quality_vs_cost.draw(figures.Inputs(summary), narrow=False)
    assert any("Not measured here: nf4" in text.get_text() for text in figure.texts)
    assert len(points(figure, 0)) == 5 and sum(filled for filled, *_ in points(figure, 2)) == 5
    summary.loc[summary["method"] == "nf4", "status"] = "ok"
    figure = quality_vs_cost.draw(figures.Inputs(summary), narrow=False)
    assert any("Too noisy here: nf4" in text.get_text() for text in figure.texts)


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
@pytest.mark.parametrize("which", ["many", "mixed"])
def test_texts_beside_the_lanes_do_not_overlap(which, narrow, request):
    figure = layer_error.draw(request.getfixturevalue(which), narrow)
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


def test_blocks_of_a_unet_are_its_innermost_ones(mixed):
    rows = mixed.layers[mixed.layers["error_of"] == "outputs"]
    maps, kinds = layer_depth.maps_of(rows)
    assert kinds[:4] == ["conv_in", "time_embedding.linear_1", "conv1", "time_emb_proj"] and "attn2.to_out.0" in kinds
    assert len(kinds) == 3 + len(synthetic.UNET_PARTS)
    assert maps["gptq-w4"].shape[1] == 1 + 5 * 3  # of each part a resnet, an attention's projections, its block
    own = rows.set_index("layer")["relative_error"]
    assert maps["gptq-w4"][kinds.index("conv2"), 4] == own["down_blocks.1.resnets.0.conv2"]


def test_long_names_of_layers_lose_their_middle():
    name = "down_blocks.1.attentions.0.transformer_blocks.3.attn2.to_k"
    assert layer_error.abridged(name) == "down_blocks.1…attn2.to_k"
    assert layer_error.abridged("mid_block.attentions.0.proj_in") == "mid_block…0.proj_in"
    assert layer_error.abridged("5.ff_context.net.0.proj") == "5.ff_context.net.0.proj"


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


def test_a_method_far_worse_does_not_squeeze_the_seeds(many):
    summary = many.summary.copy()
    far = summary["method"] == "rtn-w2a16"
    for column, value in (("psnr_db", -200), ("psnr_db_low", -201), ("psnr_db_high", -199)):
        summary.loc[far, column] = value
    [axes] = seeds.draw(figures.Inputs(summary), narrow=False).axes
    low, high = axes.get_xlim()
    assert np.ptp(summary.loc[~far, "psnr_db"].dropna()) > (high - low) / 3
    [mark] = [line for line in axes.lines if line.get_marker() == "<"]
    assert mark.get_xdata()[0] == low and "-200" in [text.get_text() for text in axes.texts]


# --- several numbers of steps


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Eight methods under 1, 2, 4 and 8 steps."""
    results = tmp_path_factory.mktemp("swept")
    metrics = ["fid", "psnr", "ssim", "class-accuracy"]
    return inputs_of(results, synthetic.write_sweep(results), "float32", synthetic.steps_settings(), metrics)


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_quality_by_steps(swept):
    panels = steps.draw(swept, narrow=False).axes
    titles = ["Fréchet distance, judge features", "share read as the class asked for", "PSNR to the unquantized image"]
    assert len(panels) == 3 and all(title in axes.get_title() for axes, title in zip(panels, titles, strict=True))
    assert [text.get_text() for text in panels[0].get_xticklabels()] == ["1", "2", "4", "8"]
    assert set(lines_of(panels[0])) == set(synthetic.SWEPT) and "float32" not in lines_of(panels[2])
    line, summary = lines_of(panels[0])["brecq-w4"], swept.summary.set_index(["method", "steps"])["fid"]
    assert list(line.get_ydata()) == pytest.approx([summary["brecq-w4", count] for count in (1, 2, 4, 8)])
    assert [round(x) for x in line.get_xdata()] == [0, 1, 2, 3] and panels[0].get_yscale() == "log"
    starts = [line.get_xdata()[0] for line in lines_of(panels[0]).values()]
    assert len(set(starts)) == len(starts)  # beside one another
    assert lines_of(panels[0])["float32"].get_color() == figures.INK
    strokes = {(line.get_color(), line._dash_pattern[1] and tuple(line._dash_pattern[1]))
               for line in lines_of(panels[0]).values()}  # fmt: skip
    assert len(strokes) == len(synthetic.SWEPT)


def test_the_intervals_of_a_sweep_are_drawn(swept):
    axes = steps.draw(swept, narrow=False).axes[0]
    bars = [segment for bar in axes.collections for segment in bar.get_segments()]
    assert len(bars) == 8 * 4
    rows = swept.summary[swept.summary["method"] == "rtn-w4"]
    expected = rows[["fid_low", "fid_high"]].to_numpy()
    found = [segment[:, 1] for segment in bars]
    assert all(any(np.allclose(bar, pair) for bar in found) for pair in expected)


@pytest.mark.parametrize("narrow", [False, True])
def test_names_beside_lines_do_not_overlap(swept, narrow):
    figure = steps.draw(swept, narrow)
    renderer = FigureCanvasAgg(figure).get_renderer()
    windows = [axes.get_window_extent(renderer) for axes in figure.axes]
    for axes, window in zip(figure.axes, windows, strict=True):
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert len(boxes) == len(lines_of(axes))
        for i, a in enumerate(boxes):
            assert not any(a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1 for b in boxes[:i]), axes.texts[i].get_text()
            assert a.x0 > window.x1 and a.x1 < figure.bbox.x1
            assert not any(a.overlaps(other) for other in windows)


def test_a_method_far_worse_does_not_squeeze_a_sweep(swept):
    rows = swept.summary
    far = {"rtn-w2": 0.100, "gptq-w2": 0.400}
    axes = steps.draw(swept, narrow=False).axes[1]  # class accuracy; distances are on a logarithmic axis
    others = rows.loc[~rows["method"].isin(far), "class_accuracy"]
    low, high = axes.get_ylim()
    assert np.ptp(others) > (high - low) / 3 and low > 0.4
    names = {text.get_text() for text in axes.texts}
    assert {"rtn-w2: 0.100", "gptq-w2: 0.400", "brecq-w2"} < names
    assert not any(":" in text.get_text() for text in steps.draw(swept, narrow=False).axes[0].texts)


def test_the_panels_of_many_methods_have_room_for_their_names(tmp_path, monkeypatch):
    made = {f"method-{i}": numbers for i, numbers in enumerate(list(synthetic.MANY.values())[1:] * 2)}
    monkeypatch.setattr(synthetic, "SWEPT", {"float32": synthetic.SWEPT["float32"]} | made)
    cells = synthetic.write_sweep(tmp_path, with_images=False)
    found = inputs_of(tmp_path, cells, "float32", synthetic.steps_settings(), ["fid", "psnr"])
    for axes in steps.draw(found, narrow=False).axes:
        window = axes.get_window_extent()
        heights = sorted(text.get_window_extent().y0 for text in axes.texts)
        assert len(heights) >= 48 and min(np.diff(heights)) > 5
        assert heights[0] >= window.y0 - 1 and heights[-1] < window.y1


def test_heights_move_apart_as_little_as_they_can():
    assert labels.apart([5, 1, 9], 2, 0, 10) == pytest.approx([5, 1, 9])
    assert labels.apart([5, 5, 5], 2, 0, 10) == pytest.approx([3, 5, 7])
    assert labels.apart([0, 0.5, 8], 2, 0, 10) == pytest.approx([0, 2, 8])  # kept inside
    assert labels.apart([10, 9], 2, 0, 10) == pytest.approx([10, 8])


def test_of_a_sweep_only_the_first_is_drawn_elsewhere(swept):
    assert len(quality_vs_cost.draw(swept, narrow=False).axes) == 2  # none is measured but the baseline
    rows = [text.get_text() for text in image_grid.draw(swept, narrow=False).axes[0].texts]
    assert "digits · step-1" in rows and not any("steps-8" in text for text in rows)
    assert len(power_trace.draw(swept, narrow=False).axes) == 1


def test_without_a_sweep_or_a_mixed_method_figures_say_so(inputs):
    for module, text in (
        (steps, "No two samplings differ only by their number of steps."),
        (budget, "No method's allocation is mixed."),
        (sensitivity, "No method's allocation is mixed, so no layer was tried alone."),
    ):
        assert " ".join(module.draw(inputs, narrow=False).axes[0].texts[0].get_text().split()) == text


# --- mixed allocations


def mixed_inputs(results, **settings):
    cells = synthetic.write_mixed(results, with_images=False, **settings)
    tried = [{"model": "few-step", "sensitivity": "tried"}]
    return inputs_of(results, cells, "fp16", {}, ["fid", "psnr"], tried)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return mixed_inputs(tmp_path_factory.mktemp("mixed"))


def marks_of(axes):
    """{marker: [(x, y)]} of a panel's points."""
    found = {}
    for line in axes.lines:
        if line.get_marker() not in ("", "None", None):
            found.setdefault(line.get_marker(), []).append(tuple(line.get_xydata()[0]))
    return found


def test_mixed_methods_are_diamonds_over_the_hull_of_uniform_ones(mixed):
    panels = budget.draw(mixed, narrow=False).axes
    costs = ["average bits", "size of the quantized weights", "time per image", "energy per image (J), estimated"]
    assert [text for axes, text in zip(panels, costs, strict=True) if text not in axes.get_xlabel()] == []
    rows = mixed.summary[mixed.summary["allocation"] == "mixed"]
    assert sorted(marks_of(panels[0])["D"]) == sorted(
        rows[["weight_bits", "psnr_db"]].itertuples(index=False, name=None)
    )
    assert len(uniform_marks(panels[0])) == 5 and "*" not in marks_of(panels[0])  # the baseline has no PSNR
    assert len(marks_of(panels[3])["D"]) == 2  # w8a8: the others are simulated
    hull = [line for line in panels[0].lines if len(line.get_xdata()) > 1 and line.get_color() == figures.GREY]
    values = rows_of(mixed, ["naive-w4a8", "bos-w8a8"])
    assert any(np.allclose(line.get_xydata(), values) for line in hull)
    assert len(marks_of(quality_vs_cost.draw(mixed, narrow=False).axes[2])["D"]) == len(rows)


def uniform_marks(axes):
    """[(x, y)] of the points of uniform methods in a panel."""
    return [place for shape, places in marks_of(axes).items() if shape not in ("D", "*") for place in places]


def rows_of(inputs, methods):
    return inputs.summary.set_index("method").loc[methods, ["weight_bits", "psnr_db"]].to_numpy()


def test_a_panel_of_distances_has_the_baseline_and_better_above(mixed):
    summary = mixed.summary.assign(psnr_db=np.nan)
    axes = budget.draw(figures.Inputs(summary), narrow=True).axes[0]
    assert "↓ Fréchet distance" in axes.get_title() and axes.yaxis_inverted()
    assert marks_of(axes)["*"] == [(16, 17.2)]


@pytest.mark.parametrize("narrow", [False, True])
def test_names_of_budgets_do_not_overlap(mixed, narrow):
    figure = budget.draw(mixed, narrow)
    assert [pair for axes in figure.axes for pair in colliding(axes)] == []
    assert cut(figure) == []


def test_a_budget_far_worse_stands_at_the_edge_and_its_hull_keeps_its_slope(mixed):
    axes = budget.draw(figures.Inputs(mixed.summary.assign(psnr_db=np.nan)), narrow=False).axes[0]
    assert axes.get_ylim()[0] < 60 and {"naive-w4a8: 359", "naive-w8a8: 104"} < {t.get_text() for t in axes.texts}
    own = mixed.summary.set_index("method").loc[["naive-w4a8", "bos-w8a8"], ["weight_bits", "fid"]].to_numpy()
    assert any(line.get_xydata().shape == own.shape and np.allclose(line.get_xydata(), own) for line in axes.lines)


def test_layers_alone_over_the_bits_that_methods_gave_them(mixed):
    quality, strips, content, _ = sensitivity.draw(mixed, narrow=False).axes
    assert "tried: 48 quality layers, each alone" in quality.get_title()
    assert "tried: 30 content layers, each alone" in content.get_title()
    assert quality.get_ylabel().startswith("SQNR") and content.get_ylabel().startswith("SSIM")
    table = mixed.sensitivity[(mixed.sensitivity["group"] == "quality") & (mixed.sensitivity["candidate"] == "w4")]
    dots = [dots.get_offsets()[:, 1] for dots in quality.collections]
    assert any(len(y) == len(table) and np.allclose(y, table["value"]) for y in dots)
    keys = [axes.get_legend() for axes in (quality, content)]
    pairs = [pair for key in keys for pair in zip(key.texts, key.legend_handles, strict=True)]
    colour = {text.get_text(): handle.get_color() for text, handle in pairs}
    assert len({(text.get_text(), handle.get_color()) for text, handle in pairs}) == len(set(colour.values())) == 5
    names = [text.get_text() for text in strips.get_yticklabels()]
    assert "mixdq-w4a8 activations" in names and "mixdq-w4 activations" not in names  # all in 16 bit
    cells = strips.images[0].get_array()
    own = mixed.layers[mixed.layers["method"] == "mixdq-w4a8"].set_index("layer")["weight_bits"]
    bits = [round(own[layer] - 1.06) for layer in table["layer"]]  # without what scales of small groups add
    assert list(cells[names.index("mixdq-w4a8 weights")]) == bits and set(bits) == {2, 4, 8}


def test_a_layer_that_breaks_the_model_is_a_cross(mixed):
    broken = mixed.sensitivity["layer"].eq("conv_out") & mixed.sensitivity["candidate"].eq("a4")
    table = mixed.sensitivity.assign(value=mixed.sensitivity["value"].mask(broken))
    axes = sensitivity.draw(figures.Inputs(mixed.summary, mixed.layers, table), narrow=True).axes[0]
    places = np.concatenate([dots.get_offsets() for dots in axes.collections])
    assert [tuple(place) for place in places if place[1] == 0.02] == [(47, 0.02)]


def test_layers_that_are_not_quantized_have_sixteen_bits(mixed):
    part = layer_table.by_group(mixed.sensitivity)[0]
    kept = mixed.layers[mixed.layers["layer"] != "conv_in"]
    found = {label: bits for _, label, bits in sensitivity.strips(figures.Inputs(mixed.summary, kept), part)}
    assert found["mixdq-w4 weights"]["conv_in"] == 16 and found["mixdq-w4a8 activations"]["conv_in"] == 16


def test_parts_of_a_layer_have_bits_of_their_own(tmp_path):
    """Convolutions over a skip connection, of which the table of layers alone and the checkpoints name the parts."""
    cells = synthetic.write_mixed(tmp_path, with_images=False)
    described, table = tmp_path / "models/few-step/manifest.json", tmp_path / "sensitivity/few-step/tried.csv"
    model = json.loads(described.read_text())
    model["layers"]["conv_out"]["skips"] = [40, 24]
    described.write_text(json.dumps(model))
    rows = table.read_text().splitlines()
    parts = [row.replace("conv_out,", f"conv_out.{i},") for i in (0, 1) for row in rows if row.startswith("conv_out,")]
    table.write_text("\n".join([row for row in rows if not row.startswith("conv_out,")] + parts) + "\n")
    for path in tmp_path.glob("checkpoints/few-step/*/manifest.json"):
        checkpoint = json.loads(path.read_text())
        if checkpoint["settings"]["allocation"]["name"] != "mixed":
            continue
        whole = checkpoint["layers"].pop("conv_out")
        for i, bits in enumerate((8, 2)):
            own = {"weights": whole["weights"] | {"bits": bits}, "part_of": "conv_out"}
            checkpoint["layers"][f"conv_out.{i}"] = whole | own
        path.write_text(json.dumps(checkpoint))
    found = inputs_of(tmp_path, cells, "fp16", {}, ["fid", "psnr"], [{"model": "few-step", "sensitivity": "tried"}])
    part = next(part for part in layer_table.by_group(found.sensitivity) if part[2] == "quality")
    for _, label, bits in sensitivity.strips(found, part):
        if label.endswith("weights"):
            assert (bits["conv_out.0"], bits["conv_out.1"]) == (8, 2), label


def test_where_no_method_could_be_had_blocks_are_named_all_the_same(mixed):
    quality, strips, *_ = sensitivity.draw(
        figures.Inputs(mixed.summary, mixed.layers[:0], mixed.sensitivity), False
    ).axes
    assert not strips.images and not strips.get_yticks().size
    assert "mid_block" in [text.get_text() for text in strips.get_xticklabels()] and len(quality.lines) > 3


def test_the_names_of_many_blocks_are_apart(tmp_path):
    figure = sensitivity.draw(mixed_inputs(tmp_path, blocks=28), narrow=True)  # 858 layers
    renderer = FigureCanvasAgg(figure).get_renderer()
    under = figure.axes[1]
    size = under.get_xticklabels()[0].get_fontsize()
    points = [text.get_window_extent(renderer).x1 * 72 / figure.dpi for text in under.get_xticklabels()]
    assert len(points) > 10 and min(np.diff(points)) > size / np.sin(np.deg2rad(35)) * 0.95
    assert figure.axes[0].get_xlim() == (-0.5, 515.5)
