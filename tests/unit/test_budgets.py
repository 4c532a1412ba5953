import pytest
import synthetic_results as synthetic

from quantwatt.report import mixed_precision, tables
from quantwatt.report.cells import read_cells

PSNR = tables.METRICS["psnr"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    results = tmp_path_factory.mktemp("budgets")
    cells = read_cells(results, synthetic.write_mixed(results, with_images=False), ["psnr"])
    [(title, metric, rows)] = mixed_precision.with_mixed(tables.summary_table(cells, "fp16"))
    assert title.startswith("few-step · step-1") and metric == PSNR
    return rows


def counterpart(rows, method):
    other = mixed_precision.counterpart(rows[rows["method"] == method].iloc[0], rows, PSNR)
    return other if other is None else other["method"]


@pytest.mark.parametrize(
    ("method", "other"),
    [
        ("mixdq-w8a8", "bos-w8a8"),  # the better of two
        ("mixdq-w4a8", "naive-w4a8"),  # not gptq-w4, whose activations have more bits
        ("mixdq-w5a8", "bos-w8a8"),  # none has as many, these have the next more
        ("mixdq-w4", "gptq-w4"),
        ("mixdq-w3.66", "gptq-w4"),
    ],
)
def test_a_mixed_method_is_held_against_the_best_uniform_one_of_its_bits(rows, method, other):
    assert counterpart(rows, method) == other


def test_fewer_bits_are_no_counterpart(rows):
    fewer = rows.copy()
    fewer.loc[fewer["method"] == "mixdq-w8a8", "weight_bits"] = 8.2
    assert counterpart(fewer, "mixdq-w8a8") is None
    fewer.loc[fewer["method"] == "mixdq-w4", "activation_bits"] = 16.6
    assert counterpart(fewer, "mixdq-w4") is None
    [verdict] = [
        better for row, other, better in mixed_precision.against_uniform(fewer, PSNR) if row["method"] == "mixdq-w4"
    ]
    assert verdict is False


def test_better_are_those_whose_intervals_lie_apart(rows):
    verdicts = {row["method"]: better for row, _, better in mixed_precision.against_uniform(rows, PSNR)}
    assert verdicts == {
        "sqnr-w8a8": False,  # 26.9 and 27.4, each 0.4 to either side
        "mixdq-w8a8": True,
        "mixdq-w5a8": True,
        "mixdq-w4a8": True,
        "mixdq-w4": False,
        "mixdq-w3.66": False,
    }


def test_without_a_mixed_method_there_is_nothing_to_compare(rows):
    assert mixed_precision.with_mixed(rows[rows["allocation"] != "mixed"]) == []
    assert mixed_precision.with_mixed(rows.assign(psnr_db=rows["psnr_db"].where(rows["allocation"] != "mixed"))) == []


def test_pareto():
    assert mixed_precision.pareto([[1, 5], [2, 4], [2, 7], [3, 7], [4, float("inf")]]) == [0, 2, 4]


def test_the_hull_rises_and_bends_downwards_only():
    points = [[4, 10], [2, 0], [3, 3], [8, 12], [5, 9], [6, 11], [9, 11]]
    assert mixed_precision.hull(points) == [1, 0, 3]  # (3, 3) lies below, (6, 11) on a line between two
    assert mixed_precision.hull([[1, 1]]) == [0]
