"""Ratios over the control, bars of joules and stacked phases: they show the tables' numbers, and what is not known."""

import itertools
import json

import numpy as np
import pytest
import synthetic_results as synthetic
from figure_inputs import colliding, cut, inputs_of
from matplotlib.backends.backend_agg import FigureCanvasAgg

from quantwatt.report import figures, labels, lanes, tables
from quantwatt.report.figures import cost_ratios, energy, phases, quality_vs_cost


def tree(folder, **settings):
    return inputs_of(folder, synthetic.write_tree(folder, with_images=False, **settings))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """25 measured methods of a GPU."""
    return tree(tmp_path_factory.mktemp("costs"), methods=synthetic.MANY, real=list(synthetic.MANY),
                device=synthetic.GPU, meter="nvml")  # fmt: skip


@pytest.fixture(scope="module")
def verdicts(inputs):
    """The same with one row of every verdict, and a wide control of the baseline."""
    summary = inputs.summary.copy().set_index("method")
    said = {
        "rtn-w8a8": ("better", 0.6, 0.58, 0.62),
        "nf4": ("worse", 1.9, 1.8, 2.0),
        "fp4": ("better, within the control", 0.9, 0.85, 0.95),
        "torchao-int8": ("equal", 1.0, 0.98, 1.02),
        "gptq-w4a8": ("not told apart", 1.01, 0.9, 1.15),
        "brecq-w4a8": (tables.TOO_NOISY, np.nan, np.nan, np.nan),
    }
    ratio = ["verdict", "energy_ratio", "energy_ratio_low", "energy_ratio_high"]
    for method, values in said.items():
        summary.loc[method, ratio] = values
    summary[["energy_control", "energy_control_low", "energy_control_high"]] = 0.99, 0.80, 1.10
    return figures.Inputs(summary.loc[["bf16", *said]].reset_index()[inputs.summary.columns])


def rows_in(axes):
    """{method: line} of a chart of lanes."""
    return {text.get_text(): round(text.get_position()[1]) for text in axes.texts if text.get_ha() == "right"}


def test_ratios_are_the_tables_by_rising_energy(inputs):
    ratios = inputs.summary.set_index("method")
    first, second = cost_ratios.draw(inputs, narrow=False).axes
    order = list(rows_in(first))
    assert order[-1] == "bf16, itself" and len(order) == 25
    shown = [ratios.loc[name, "energy_ratio"] for name in order[:-1]]
    assert shown == sorted(shown)
    for axes, name in ((first, "energy"), (second, "latency")):
        dots = {round(line.get_ydata()[0]): line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"}
        bars = {line.get_ydata()[0]: line.get_xdata() for line in axes.lines if line.get_linewidth() == 2}
        assert len(dots) == len(bars) == 25
        for method, line in list(rows_in(first).items())[:-1]:
            row = ratios.loc[method]
            assert dots[line] == pytest.approx(row[f"{name}_ratio"])
            assert list(bars[line]) == pytest.approx([row[f"{name}_ratio_low"], row[f"{name}_ratio_high"]])
    assert first.get_xscale() == "log" and first.get_xlabel() == "energy ratio (log)"


def test_the_grey_band_is_the_control_and_the_paler_one_the_floor_of_the_verdict(verdicts):
    axes = cost_ratios.draw(verdicts, narrow=False).axes[0]
    floor, control = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches[:2]]
    assert control == pytest.approx((0.80, 1.10))
    assert floor == pytest.approx((0.80, 1 / 0.80))  # as far above 1 as the control reaches below it
    assert axes.patches[1].get_gid() == "control"
    inside = [method for method, line in rows_in(axes).items() for bar in axes.lines
              if bar.get_linewidth() == 2 and bar.get_ydata()[0] == line
              and floor[0] <= bar.get_xdata()[0] and bar.get_xdata()[1] <= floor[1]]  # fmt: skip
    assert {"fp4", "torchao-int8", "gptq-w4a8"} == set(inside) - {"bf16, itself"}


def test_ink_says_the_verdict(verdicts):
    axes = cost_ratios.draw(verdicts, narrow=False).axes[0]
    dots = {round(line.get_ydata()[0]): line for line in axes.lines if line.get_marker() == "o"}
    inks = {method: dots[line].get_color() for method, line in rows_in(axes).items() if line in dots}
    assert inks["rtn-w8a8"] == cost_ratios.GOOD and inks["nf4"] == cost_ratios.BAD
    assert {inks[name] for name in ("fp4", "torchao-int8", "gptq-w4a8")} == {figures.GREY}
    assert all(dots[rows_in(axes)[name]].get_markerfacecolor() == "white" for name in ("fp4", "torchao-int8"))
    assert "brecq-w4a8" not in inks and "too noisy" in [text.get_text() for text in axes.texts]
    assert "0.900 [0.850, 0.950] better, within the control" in [text.get_text() for text in axes.texts]


def test_a_ratio_far_off_does_not_squeeze_the_others(verdicts):
    summary = verdicts.summary.copy()
    far = summary["method"] == "nf4"
    summary.loc[far, ["energy_ratio", "energy_ratio_low", "energy_ratio_high"]] = 40, 38, 42
    axes = cost_ratios.draw(figures.Inputs(summary), narrow=False).axes[0]
    low, high = np.log(axes.get_xlim())
    assert np.log(1.15 / 0.58) > (high - low) / 3 and high < np.log(2)
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == ">"] == [pytest.approx(np.exp(high))]
    assert "40.0 [38.0, 42.0] worse" in [text.get_text() for text in axes.texts]


def test_a_ratio_without_an_interval_is_a_dot_without_a_verdict(verdicts):
    summary = verdicts.summary.copy()
    names = [f"{name}_{end}" for name in ("energy_ratio", "latency_ratio") for end in ("low", "high")]
    summary[[*names, "verdict", "latency_verdict"]] = np.nan
    axes = cost_ratios.draw(figures.Inputs(summary), narrow=False).axes[0]
    assert {"rtn-w8a8", "nf4"} < set(rows_in(axes)) and "0.600" in [text.get_text() for text in axes.texts]
    dots = [line for line in axes.lines if line.get_marker() == "o" and line.get_color() == figures.GREY]
    assert sorted(line.get_xdata()[0] for line in dots) == pytest.approx([0.6, 0.9, 1.0, 1.01, 1.9])


def test_estimated_energy_is_marked(tmp_path, inputs):
    estimated = tree(tmp_path, meter="estimate")
    assert cost_ratios.draw(estimated, narrow=False).axes[0].get_xlabel() == "energy ratio (log), estimated"
    assert energy.draw(estimated, narrow=False).axes[0].get_xlabel() == "energy per image (J), estimated"
    assert phases.draw(estimated, narrow=False).axes[0].get_xlabel() == "energy per image (J), estimated"
    some = inputs.summary.assign(energy_estimated=inputs.summary["method"].eq("nf4").astype(object))
    for module in (cost_ratios, energy):
        axes = module.draw(figures.Inputs(some), narrow=False).axes[0]
        assert "estimated" not in axes.get_xlabel()
        assert sum("estimated" in text.get_text() for text in axes.texts) == 1


def test_bars_of_joules_with_watt_hours_and_images_per_kilowatt_hour(inputs):
    axes = energy.draw(inputs, narrow=False).axes[0]
    order = [text.get_text() for text in axes.texts if text.get_ha() == "right"]
    summary = inputs.summary.set_index("method")
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([summary.loc[name, "energy_j"] for name in order]) and widths == sorted(widths)
    assert "1.10 J [1.09, 1.11], 3.27 million images per kWh" in [text.get_text() for text in axes.texts]
    [second] = axes.child_axes
    assert second.get_xlabel() == "Wh per 1,000 images"
    FigureCanvasAgg(axes.figure).draw()
    assert second.get_xlim()[1] == pytest.approx(axes.get_xlim()[1] / 3.6)  # 1,000 J an image are 1,000 / 3.6 Wh


def test_without_energy_seconds_are_drawn(tmp_path):
    inputs = tree(tmp_path, meter="rapl", energy_reason="rapl is unreadable")
    [axes] = energy.draw(inputs, narrow=False).axes
    assert axes.get_xlabel() == "time per image (s)" and not axes.child_axes
    assert any("images per hour" in text.get_text() for text in axes.texts)
    assert [axes.get_xlabel() for axes in cost_ratios.draw(inputs, narrow=False).axes] == ["time ratio (log)"]
    assert [axes.get_xlabel() for axes in phases.draw(inputs, narrow=False).axes] == ["time per image (s)"]


def test_a_bar_far_off_is_cut(tmp_path):
    made = {"bf16": synthetic.METHODS["bf16"], **{
        name: synthetic.METHODS["rtn-w8a8"]._replace(joules=joules)
        for name, joules in (("a", 0.8), ("b", 0.9), ("c", 1.2), ("d", 30.0))
    }}  # fmt: skip
    [axes] = energy.draw(tree(tmp_path, methods=made), narrow=False).axes
    assert axes.get_xlim()[1] < 1.3
    assert [line.get_ydata()[0] for line in axes.lines if line.get_marker() == ">"] == [4]
    assert any(text.get_text().startswith("30.0 J") for text in axes.texts)


def test_the_baseline_is_never_cut(tmp_path):
    values = np.array([0.1, 0.11, 0.12, 0.13, 5.0])
    for kept, end in (([], 0.13 * 1.04), ([4], 5.0 * 1.04)):
        panel = lanes.bars(values, None, ["black"] * 5, [""] * 5, "J", kept)
        chart = lanes.Chart("t", list("abcde"), ["black"] * 5, [panel])
        assert lanes.draw([chart], narrow=False).axes[0].get_xlim()[1] == pytest.approx(end)


def segments_of(axes):
    """{line: [(start, width, hatch)]} of stacked bars."""
    found = {}
    for bar in axes.patches:
        line = round(bar.get_y() + bar.get_height() / 2)
        found.setdefault(line, []).append((bar.get_x(), bar.get_width(), bar.get_hatch()))
    return found


def test_phases_are_stacked_up_to_their_sum(inputs):
    first, second = phases.draw(inputs, narrow=False).axes
    order = [text.get_text() for text in first.texts if text.get_ha() == "right"]
    assert order[0] == "bf16" and len(order) == 25
    summary = inputs.summary.set_index("method")
    for axes, cost in ((first, "energy_j"), (second, "latency_s")):
        stacked = segments_of(axes)
        for line, method in enumerate(order):
            whole = summary.loc[method, cost]
            widths = [width for _, width, _ in stacked[line]]
            assert widths == pytest.approx([0.04 * whole, 0.9 * whole, 0.05 * whole])
            ends = [start + width for start, width, _ in stacked[line]]
            assert [start for start, *_ in stacked[line]] == pytest.approx([0, *ends[:-1]])
            assert any(list(mark.get_xdata()) == pytest.approx([whole] * 2) for mark in axes.lines)


def test_a_phase_that_the_whole_does_not_include_is_hatched(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    for path in tmp_path.glob("measurements/*/*/*/measurement.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"phases_apart": ["decode"]}))
    figure = phases.draw(inputs_of(tmp_path, cells), narrow=True)
    assert [hatch for _, _, hatch in segments_of(figure.axes[0])[0]] == [None, None, "////"]
    assert any("not part of the whole" in text.get_text() for text in figure.texts)


def test_energy_only_has_no_empty_panel(tmp_path):
    names = ("bf16", "rtn-w8a8", "bitsandbytes-int8", "nf4", "fp4")
    cells = synthetic.write_tree(tmp_path, methods={name: synthetic.MANY[name] for name in names}, with_images=False)
    inputs = inputs_of(tmp_path, cells, metrics=[])
    for module, narrow in itertools.product((quality_vs_cost, cost_ratios, energy, phases), (False, True)):
        for axes in module.draw(inputs, narrow).axes:
            assert axes.axison and axes.get_xlabel()
            assert len(axes.patches) + len([line for line in axes.lines if line.get_marker() == "o"]) >= len(names)


def test_what_was_not_measured_is_a_sentence(tmp_path):
    inputs = tree(tmp_path, real=[])
    for module in (cost_ratios, energy, phases):
        [axes] = module.draw(inputs, narrow=False).axes
        assert "was measured" in " ".join(axes.texts[0].get_text().split())


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("module", [cost_ratios, energy, phases])
def test_texts_beside_long_names_do_not_collide(module, narrow, tmp_path):
    made = {"bf16": synthetic.METHODS["bf16"]} | {
        f"{name}-with-a-name-as-long-as-they-come": numbers for name, numbers in list(synthetic.MANY.items())[1:7]
    }
    cells = synthetic.write_tree(tmp_path, methods=made, with_images=False)
    figure = module.draw(inputs_of(tmp_path, cells), narrow)
    assert cut(figure) == []
    assert [pair for axes in figure.axes for pair in colliding(axes)] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.061, "0.0610"), (1.6, "1.60"), (24.134, "24.1"), (99.96, "100"), (149161, "149,000"), (3272727, "3.27 million"),
     (-90.0, "-90.0"), (-149.6, "-150")],
)  # fmt: skip
def test_three_digits_count(value, text):
    assert labels.digits(value) == text
