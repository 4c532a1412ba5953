"""The first figure: what is named, what stands at the edge, and that no panel is empty."""

import numpy as np
import pandas as pd
import pytest
import synthetic_results as synthetic
from figure_inputs import colliding, inputs_of

from quantwatt.report import clipping, figures, marks
from quantwatt.report.figures import quality_vs_cost
from quantwatt.report.mixed_precision import pareto

SOLVERS = ("rtn", "gptq", "hqq", "qronos", "brecq")


def methods(count, seed=0, **changes):
    """`count` measured methods of 2 to 8 bits beside the baseline; changes: {name: fields}."""
    rng, made = np.random.default_rng(seed), {"bf16": synthetic.METHODS["bf16"]}
    for i in range(count - 1):
        bits, solver = (8, 4, 3, 2)[i % 4], SOLVERS[i % len(SOLVERS)]
        psnr = 8 + 4 * bits + rng.normal(0, 1.5)
        made[f"{solver}-w{bits}a{8 * (1 + i % 2)}-{i}"] = synthetic.Method(
            solver, bits + 0.125, 8, 0.44 * bits, psnr, 3.2 + 40 / psnr, 0.3, 1.1 - 0.04 * bits + rng.normal(0, 0.05),
            0.06 - 0.002 * bits + rng.normal(0, 0.003),
        )  # fmt: skip
    for name, fields in changes.items():
        made[name] = made[name]._replace(**fields)
    return made


def drawn(folder, made, narrow=False, metrics=("psnr", "fid"), **settings):
    cells = synthetic.write_tree(folder, methods=made, real=list(made), with_images=False, **settings)
    inputs = inputs_of(folder, cells, metrics=list(metrics))
    return inputs, quality_vs_cost.draw(inputs, narrow)


def names_in(axes):
    return {text.get_text().partition(":")[0].partition(" (")[0] for text in axes.texts if text.get_text()}


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("count", [10, 25, 40])
def test_labels_do_not_collide(count, narrow, tmp_path):
    _, figure = drawn(tmp_path, methods(count), narrow)
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert colliding(axes) == [] and "bf16" in names_in(axes)


@pytest.mark.parametrize(("count", "all_named"), [(10, True), (25, False)])
def test_of_many_methods_the_front_is_named(count, all_named, tmp_path):
    inputs, figure = drawn(tmp_path, methods(count))
    rows = inputs.summary[inputs.summary["psnr_db"].notna()]
    front = {rows.iloc[i]["method"] for i in pareto(rows[["size_mb", "psnr_db"]].to_numpy(float))}
    named = names_in(figure.axes[2])
    assert front | {"bf16"} <= named and (named == set(inputs.summary["method"])) == all_named
    assert any("Named are methods on a Pareto front" in text.get_text() for text in figure.texts) == (not all_named)


def share_of(axes, values, log=False):
    """Share of an axis that points take."""
    scale = np.log if log else np.asarray
    low, high = sorted(axes.get_xlim() if log else axes.get_ylim())
    return np.ptp(scale(values)) / (scale(high) - scale(low))


@pytest.mark.parametrize("far", [{"fid": 81.0}, {"psnr": -90.0}, {"joules": 60.0}])
def test_an_outlier_leaves_the_others_a_third_of_the_panel(far, tmp_path):
    name = next(name for name in methods(10) if "w2" in name)
    inputs, figure = drawn(tmp_path, methods(10, **{name: far}))
    rows = inputs.summary[inputs.summary["method"] != name]
    panel, column, log = {"fid": (1, "fid", False), "psnr": (0, "psnr_db", False), "joules": (0, "energy_j", True)}[
        next(iter(far))
    ]
    axes = figure.axes[panel]
    assert share_of(axes, rows[column].dropna(), log) > 1 / 3
    [text] = [text.get_text() for text in axes.texts if text.get_text().startswith(name)]
    assert text.split(": ")[1] in ("81.0", "-90.0 dB", "60.0 J")
    x, y = next(line.get_xydata()[0] for line in reversed(axes.lines) if line.get_marker() == marks.SHAPES[2][0]
                and line.get_xydata()[0][0 if log else 1] == pytest.approx(_edge(axes, log)))  # fmt: skip
    assert sorted(axes.get_xlim())[0] < x < sorted(axes.get_xlim())[1]
    assert sorted(axes.get_ylim())[0] < y < sorted(axes.get_ylim())[1]


def _edge(axes, log):
    """The coordinate of the worst mark on an axis."""
    places = [line.get_xydata()[0] for line in axes.lines if line.get_marker() not in ("", "None", None)]
    values = [x if log else y for x, y in places]
    return max(values) if log or axes.yaxis_inverted() else min(values)


def test_the_best_and_the_baseline_are_never_at_the_edge():
    low = high = np.array([1, 1.1, 1.2, 1.3, 81])
    assert clipping.worst_shown(low, high) == 1.3
    assert clipping.worst_shown(low, high, [4]) == np.inf
    assert clipping.worst_shown(-low, -high) == np.inf  # one is better than all others
    assert clipping.worst_shown(np.arange(9.0), np.arange(9.0)) == np.inf
    low, high = np.array([1, 1, 1, 1, 1, 30, 60, 81.0]), np.array([1, 2, 3, 4, 4, 30, 60, 81.0])
    assert clipping.worst_shown(low, high) == 4
    one_after_another = np.array([-33, -31, -29.7, -29.5, -29, -28, -27.4, -26.9, -22, -19.3, -12])
    assert clipping.worst_shown(one_after_another, one_after_another) == np.inf
    two_groups = np.array([1, 1.1, 1.2, 9, 9.5])
    assert clipping.worst_shown(two_groups, two_groups) == np.inf
    swept = np.array([1.1, 1.12, 2.9, 96, 60, 1.11, 1.6, 14])
    assert clipping.worst_shown(swept, swept) == 2.9  # 96 and 60 go first, and then 14 would be alone


@pytest.mark.parametrize(
    ("metrics", "real", "panels"),
    [
        (["psnr", "fid"], None, ["energy", "energy", "size"]),
        (["psnr"], None, ["energy", "size"]),
        (["psnr", "fid"], [], ["size", "size"]),
        (["psnr"], [], ["size"]),
    ],
)
def test_no_panel_is_empty(metrics, real, panels, tmp_path):
    cells = synthetic.write_tree(tmp_path, real=real, with_images=False)
    figure = quality_vs_cost.draw(inputs_of(tmp_path, cells, metrics=metrics), narrow=False)
    assert [axes.get_xlabel().split()[0] for axes in figure.axes] == panels
    assert all(axes.axison and len(axes.lines) > 3 for axes in figure.axes)


def test_without_a_quality_there_are_bars_of_sizes(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    inputs = inputs_of(tmp_path, cells, metrics=[])
    [axes] = quality_vs_cost.draw(inputs, narrow=False).axes
    assert axes.get_xlabel() == "size of the quantized weights (MB)"
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == sorted(inputs.summary["size_mb"]) and {"2.02 MB, 28%", "7.10 MB, 100%"} < {
        text.get_text() for text in axes.texts
    }


def keys_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_the_key_has_what_is_drawn_and_nothing_else(tmp_path):
    made = {name: synthetic.METHODS[name] for name in ("bf16", "rtn-w8a8", "nf4")}
    cells = synthetic.write_tree(tmp_path, methods=made, with_images=False)
    figure = quality_vs_cost.draw(inputs_of(tmp_path, cells, metrics=["psnr"]), narrow=False)
    assert keys_of(figure) == ["unquantized", "8 bit weights", "4 bit weights", "nf4", "rtn", "Pareto front"]
    del made["nf4"]
    cells = synthetic.write_tree(tmp_path / "two", methods=made, with_images=False)
    figure = quality_vs_cost.draw(inputs_of(tmp_path / "two", cells, metrics=["psnr"]), narrow=False)
    assert keys_of(figure) == ["unquantized", "8 bit weights", "rtn"]  # one point is no front
    cells = synthetic.write_tree(tmp_path / "three", with_images=False)
    figure = quality_vs_cost.draw(inputs_of(tmp_path / "three", cells, metrics=["psnr"]), narrow=True)
    assert {"hollow: not measured here", "2 bit weights", "3 bit weights"} < set(keys_of(figure))


def test_a_ring_is_a_cache_and_a_diamond_steps_of_its_own(tmp_path):
    _, figure = drawn(tmp_path, synthetic.DRAWN, metrics=["psnr"])
    marked = {"in a ring: cached", "in a diamond: own steps"}
    assert keys_of(figure) == [
        "unquantized", "not quantized", "8 bit weights", "4 bit weights", "in a ring: cached",
        "in a diamond: own steps", "rtn", "Pareto front",
    ]  # fmt: skip
    axes = figure.axes[0]
    for column, shape in (("cache", "o"), ("steps", "D")):
        wide = max(size for _, size in marks.SHAPES.values())
        found = [line for line in axes.lines if line.get_marker() == shape and line.get_markersize() > wide]
        assert {line.get_markerfacecolor() for line in found} == {"none"}
        assert len(found) == sum(getattr(numbers, column) is not None for numbers in synthetic.DRAWN.values()) == 3
    plain = {name: numbers for name, numbers in synthetic.DRAWN.items() if not (numbers.cache or numbers.steps)}
    assert not marked & set(keys_of(drawn(tmp_path / "plain", plain, metrics=["psnr"])[1]))


@pytest.mark.parametrize(
    ("fields", "bits"),
    [
        ({"weight_format": "int4", "weight_bits": 5.9}, 4),  # some layers are left in 16 bit
        ({"weight_format": "int2", "weight_bits": 3.1}, 2),
        ({"weight_format": "nf4", "weight_bits": 4.5}, 4),
        ({"weight_format": "torchao", "weight_bits": 8.3}, 8),
        ({"weight_format": np.nan, "weight_bits": 16.0}, 16),
        ({"weight_format": np.nan, "weight_bits": 4.0, "allocation": "mixed"}, None),
        ({"weight_format": np.nan, "weight_bits": 16.0, "baseline": True}, None),
    ],
)
def test_a_shape_stands_for_the_bits_of_a_weight(fields, bits):
    assert marks.bits_of(pd.Series({"baseline": False, "allocation": "uniform"} | fields)) == bits


@pytest.mark.parametrize(
    ("solver", "weights", "family"),
    [("rtn", "int4", "rtn"), ("rtn", "nf4", "nf4"), ("gptq", "nf4", "gptq"), ("torchao", "torchao", "torchao"),
     ("rtn", np.nan, "rtn")],
)  # fmt: skip
def test_a_colour_stands_for_the_solver_and_of_codes_for_the_format(solver, weights, family):
    assert figures.family(pd.Series({"solver": solver, "weight_format": weights})) == family
