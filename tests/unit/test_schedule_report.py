"""What tables, figures and the page say of methods whose formats depend on the step of a drawing."""

import pandas as pd
import pytest

from quantwatt.report import figures, layer_table, mixed_precision, tables
from quantwatt.report.cells import Cell
from quantwatt.report.figures import sensitivity as figure
from quantwatt.report.page import budget, methods

W4 = {"format": "integer", "bits": 4, "granularity": "channel", "group_size": None, "symmetric": False}
A8 = {"bits": 8, "granularity": "token", "dynamic": True}
RANGES = [{"steps": 7}, {"steps": 13}]
PSNR = tables.METRICS["psnr"]


def variant(bits):
    return {"weights": W4 | {"bits": bits}, "weight_bits": bits + 0.25, "activation_bits": 32, "error_of": "weights"}


def checkpoint(**changes):
    allocation = {"name": "mixed", "sensitivity": "by-step", "programs": [{"objective": "noise"}]}
    settings = {"solver": {"name": "rtn"}, "weights": None, "schedule": RANGES, "allocation": allocation}
    bits = [{"steps": 7, "weight_bits": 16.0, "activation_bits": 32.0},
            {"steps": None, "weight_bits": 4.0, "activation_bits": 8.0}]  # fmt: skip
    return {
        "status": "ok", "settings": settings, "solver": "rtn", "schedule": bits, "size_bytes": 10**6,
        "weight_bits": None, "activation_bits": None,
        "layers": {
            "a": {"in_features": 8, "out_features": 8, "ranges": [None, 0], "variants": [variant(4)]},
            "b": {"in_features": 8, "out_features": 8, "ranges": [1, 0], "variants": [variant(4), variant(8)]},
            "c": {"in_features": 8, "out_features": 8, **variant(2)},
        },
    } | changes  # fmt: skip


def cell(method="by-step", steps=20, **changes):
    images = {"status": "ok", "steps": steps, "seed": 0, "n_images": 4}
    return Cell("m", method, "s", checkpoint(**changes), images, {"status": "ok"})


def test_bits_are_averages_over_the_steps_of_a_drawing():
    table = tables.summary_table([cell(steps=20), cell(steps=14)], "float")
    assert table["weight_bits"].tolist() == [pytest.approx(4 + 12 * 7 / 20), pytest.approx(10)]
    assert table["activation_bits"].tolist() == [pytest.approx(8 + 24 * 7 / 20), pytest.approx(20)]
    assert table["allocation"].tolist() == ["mixed"] * 2 and table["weight_format"].isna().all()
    uniform = {"solver": {"name": "rtn"}, "weights": W4, "schedule": RANGES, "allocation": {"name": "uniform"}}
    row = tables.summary_table([cell(settings=uniform)], "float").iloc[0]
    assert row["allocation"] == "mixed" and pd.isna(row["sensitivity"]) and pd.isna(row["weight_format"])


def test_a_layer_has_a_row_for_each_of_its_formats(tmp_path):
    table = layer_table.layers_table([cell()])
    rows = list(zip(table["layer"], table["ranges"].fillna("all"), table["value_bits"], strict=True))
    assert rows == [("a", "1", 4), ("b", "1", 4), ("b", "0", 8), ("c", "all", 2)]
    tables.write_table(tmp_path / "layers.csv", table)
    again = tables.read_table(tmp_path / "layers.csv")
    assert again["ranges"].tolist()[:3] == ["1", "1", "0"] and pd.isna(again["ranges"][3])


@pytest.fixture(scope="module")
def tried():
    """The sensitivity of three layers in two ranges of steps, as the table holds it."""
    rows = [
        {"layer": layer, "candidate": candidate, "range": span, "noise": (span + 1) * noise * (i + 1)}
        | dict.fromkeys(("ssim", "psnr", "sqnr"))
        for i, layer in enumerate("abc")
        for candidate, noise in {"w8": 0.1, "w4": 0.2}.items()
        for span in (0, 1)
    ]
    return layer_table.sensitivity_table([cell()], [("m", "by-step", pd.DataFrame(rows), {})])


def test_each_range_of_a_sensitivity_is_named_by_its_steps(tried):
    parts = layer_table.by_group(tried)
    assert [name for _, name, *_ in parts] == ["by-step, steps 1-7", "by-step, steps 8-20"]
    assert [len(rows) for *_, rows in parts] == [6, 6]
    most = layer_table.most_sensitive(tried, count=1)
    assert [part["rows"] for part in most] == [[("c", [0.1 * 3, 0.2 * 3])], [("c", [0.2 * 3, 0.4 * 3])]]


@pytest.mark.parametrize("narrow", [False, True])
def test_the_figure_has_a_panel_for_each_range(tried, narrow):
    inputs = figures.Inputs(tables.summary_table([cell()], "float"), layer_table.layers_table([cell()]), tried)
    first, second = (figure.strips(inputs, part)[0] for part in layer_table.by_group(tried))
    assert first == ("by-step", "by-step weights", {"a": 16, "b": 8, "c": 2})
    assert second[2] == {"a": 4, "b": 4, "c": 2}
    titles = [axes.get_title() for axes in figure.draw(inputs, narrow).axes if axes.get_title()]
    assert titles == [f"m · by-step, {steps}: 3 layers, each alone" for steps in ("steps 1-7", "steps 8-20")]


def rows_of(**values):
    """{method: (allocation, energy ratio, PSNR)} as rows of the summary, intervals of 2 % and 1 dB around them."""
    return pd.DataFrame(
        {
            "method": method, "allocation": allocation, "weight_bits": 6.0, "activation_bits": 8.0,
            "energy_ratio_low": ratio and 0.98 * ratio, "energy_ratio_high": ratio and 1.02 * ratio,
            PSNR.column: psnr, f"{PSNR.column}_low": psnr - 0.5, f"{PSNR.column}_high": psnr + 0.5,
        }
        for method, (allocation, ratio, psnr) in values.items()
    )  # fmt: skip


def test_mixed_methods_are_held_against_uniform_ones_of_as_many_joules():
    rows = rows_of(
        w8=("uniform", 0.9, 40), w4=("uniform", 0.7, 30), better=("mixed", 0.8, 35), alike=("mixed", 0.7, 30.5),
        worse=("mixed", 0.91, 35), cheap=("mixed", 0.5, 30), simulated=("mixed", None, 50),
    )  # fmt: skip
    found = {row["method"]: (other is not None and other["method"], verdict)
             for row, other, verdict in mixed_precision.at_equal_joules(rows, PSNR)}  # fmt: skip
    assert found == {
        "better": ("w4", tables.BETTER), "alike": ("w4", tables.UNDECIDED), "worse": ("w8", tables.WORSE),
        "cheap": (False, None),
    }  # fmt: skip
    sentence = budget._of_joules(
        mixed_precision.at_equal_joules(rows, PSNR), ["better", "alike", "worse", "cheap", "simulated"], PSNR
    )
    against = f"{PSNR.name} than the best uniform method of as many joules or fewer"
    assert sentence == (
        f"better is significantly better (intervals apart) in {against}. "
        f"worse is significantly worse (intervals apart) in {against}. "
        f"alike is not told apart in {against.replace(' than ', ' from ')}. "
        "No uniform method takes as few joules as cheap. "
        "Of simulated nothing is told at equal joules: its energy was not measured here."
    )


def test_a_method_is_described_with_its_steps():
    ends = [{"steps": 3, "weights": None, "activations": None}, {"steps": None}, {"steps": 2, "activations": None}]
    settings = {"solver": {"name": "rtn"}, "weights": W4, "activations": A8, "allocation": {"name": "uniform"}}
    described = methods._words(settings | {"schedule": ends})["also"]
    assert described == "steps 1-3: unquantized; steps 4 to the last but 2: as above; the last 2: inputs of 16 bits"
    assert methods.short(settings | {"schedule": ends}).endswith("; other formats in some steps")
    assert "steps" not in methods.short(settings | {"schedule": None})
