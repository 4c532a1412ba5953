"""Formats at equal bits are ranked and told apart for all pairs together; a change is of one part alone."""

import itertools

import numpy as np
import pandas as pd
import pytest

from quantwatt import intervals
from quantwatt.config.experiment import complete_method
from quantwatt.report import equal_bits, holm, method_pairs, tables
from quantwatt.report.cells import Cell
from quantwatt.report.page import equal_bits as page
from quantwatt.report.tables import BETTER, EQUAL, UNDECIDED, WORSE

N = 200
MXFP4, NVFP4 = {"format": "mxfp4"}, {"format": "nvfp4"}
GROUPS = {"format": "integer", "bits": 4, "granularity": "group", "symmetric": True}
GPTQ, HADAMARD = {"name": "gptq"}, [{"name": "hadamard"}]


def cell(name, bits, entry, images, inputs=16.0):
    """A method's cell with the PSNR of every image."""
    settings = complete_method(entry, "test", name)
    checkpoint = {"status": "ok", "solver": settings["solver"]["name"], "weight_bits": bits,
                  "activation_bits": inputs, "settings": settings}  # fmt: skip
    score = {"status": "ok", "values": np.asarray(images, float), "value": float(np.mean(images)),
             "low": float(np.mean(images)) - 1, "high": float(np.mean(images)) + 1}  # fmt: skip
    drawn = {"status": "ok", "n_images": len(images), "seed": 0}
    return Cell("m", name, "s", checkpoint, drawn, {"status": "unsupported", "method": name}, {"psnr": score})


def images(mean, seed, spread=0.5):
    """Of the same prompts: what is hard for one is hard for all."""
    hard = np.random.default_rng(0).normal(0, 4, N)
    return mean + hard + np.random.default_rng(seed).normal(0, spread, N)


CELLS = [
    cell("rtn-mx", 4.25, {"weights": MXFP4}, images(28, 1)),
    cell("gptq-mx", 4.25, {"weights": MXFP4, "solver": GPTQ}, images(31, 2)),
    cell("rtn-int", 4.3, {"weights": GROUPS | {"group_size": 128}}, images(30, 3)),
    cell("gptq-int", 4.3, {"weights": GROUPS | {"group_size": 128}, "solver": GPTQ}, images(31, 4, 0.1)),
    cell("rtn-nv", 4.5, {"weights": NVFP4}, images(29, 5)),
    cell("rtn-mx-rotated", 4.25, {"weights": MXFP4, "transforms": HADAMARD}, images(29, 6)),
    cell("rtn-mx-a4", 4.25, {"weights": MXFP4, "activations": MXFP4}, images(20, 7), 4.0),
    cell("rtn-nv-a4", 4.5, {"weights": NVFP4, "activations": NVFP4}, images(22, 8), 4.0),
]  # fmt: skip


def made(cells=CELLS):
    summary, pairs = tables.summary_table(cells, "none"), method_pairs.pairs_table(cells, "none")
    return equal_bits.formats_table(cells, summary, pairs), equal_bits.changes_table(cells, summary, pairs)


@pytest.fixture(scope="module")
def both():
    return made()


@pytest.fixture(scope="module")
def ranked(both):
    return both[0].set_index("method")


@pytest.fixture(scope="module")
def changes(both):
    return both[1].set_index(["before", "after", "activation_bits"])


def test_a_group_has_equal_bits_of_weights_and_inputs_and_is_in_order(ranked):
    assert set(ranked["bits"]) == {4.25} and "rtn-mx-a4" not in ranked.index and "rtn-nv" not in ranked.index
    assert list(ranked["rank"]) == [1, 2, 3, 4, 5]
    assert list(ranked["value"]) == sorted(ranked["value"], reverse=True)
    assert ranked.loc["rtn-int", "format"] == "int4 g128 symmetric" and ranked.loc["gptq-mx", "format"] == "mxfp4"


def test_each_is_held_against_the_best_of_all_and_of_its_solver(ranked):
    best = ranked.index[0]
    assert ranked.loc[best, "verdict"] == ranked.loc[best, "solver_verdict"] == "best"
    assert {best, ranked.index[1]} == {"gptq-mx", "gptq-int"} and ranked["verdict"].iloc[1] == UNDECIDED
    assert ranked.loc["rtn-mx", "verdict"] == ranked.loc["rtn-mx", "solver_verdict"] == WORSE
    assert ranked.loc["rtn-int", ["verdict", "solver_verdict", "best_of_solver"]].tolist() == [WORSE, "best", "rtn-int"]
    found = ranked.loc["rtn-mx", ["solver_difference", "solver_difference_low", "solver_difference_high"]]
    assert found.iloc[0] == pytest.approx(-2, abs=0.2) and found.iloc[1] < found.iloc[0] < found.iloc[2] < 0


def test_a_change_is_of_one_part_and_of_formats_near_in_size(changes):
    assert dict(changes["part"].items()) == {
        ("mxfp4", "int4 g128 symmetric", 16): "format", ("mxfp4", "nvfp4", 16): "format",
        ("int4 g128 symmetric", "nvfp4", 16): "format", ("mxfp4 / mxfp4", "nvfp4 / nvfp4", 4): "format",
        ("rtn", "gptq", 16): "solver", ("", "hadamard", 16): "transforms",
    }  # fmt: skip
    pairs = {key: row for key, *row in changes[["pairs", "better", "worse", "undecided"]].itertuples(name=None)}
    assert pairs["mxfp4", "int4 g128 symmetric", 16] == [2, 1, 0, 1] and pairs["rtn", "gptq", 16] == [2, 2, 0, 0]
    assert pairs["mxfp4 / mxfp4", "nvfp4 / nvfp4", 4] == pairs["", "hadamard", 16] == [1, 1, 0, 0]


def test_a_changes_difference_is_the_mean_of_its_pairs_over_images(changes):
    row = changes.loc["rtn", "gptq", 16]
    values = {cell.method: cell.scores["psnr"]["values"] for cell in CELLS}
    mean = np.mean([values["gptq-mx"] - values["rtn-mx"], values["gptq-int"] - values["rtn-int"]], axis=0)
    found = row[["difference", "difference_low", "difference_high"]].tolist()
    assert found == pytest.approx(intervals.bootstrap_mean(mean), rel=1e-6) and row["verdict"] == BETTER
    assert changes.loc["mxfp4", "int4 g128 symmetric", 16]["difference"] == pytest.approx(1, abs=0.2)


def test_a_lower_metric_is_better_where_its_schema_says_so():
    metric = tables.METRICS["perplexity"]
    found = {("a", "b"): (-1.0, -1.2, -0.8), ("b", "a"): (1.0, 0.8, 1.2)}
    tested = equal_bits._tested(found, list(found), metric)
    assert (tested["a", "b"]["verdict"], tested["b", "a"]["verdict"]) == (BETTER, WORSE)


def test_equal_images_are_equal_and_one_image_tells_nothing():
    same = [
        cell(f"m{i}", 4.25, {"weights": weights}, images(30, 1))
        for i, weights in enumerate([MXFP4, GROUPS | {"group_size": 128}])
    ]
    assert list(made(same)[0]["verdict"]) == ["best", EQUAL]
    single = [
        cell(f"m{i}", 4.25, {"weights": weights}, [30.0 + i])
        for i, weights in enumerate([MXFP4, GROUPS | {"group_size": 128}])
    ]
    assert list(made(single)[0]["verdict"].isna()) == [False, True]


def test_where_all_methods_are_alike_hardly_any_group_tells_one_apart():
    """Of 20 pairs alone, one would be told apart by chance; of 28 pairs together, one in 20 times."""
    rng, metric, names = np.random.default_rng(3), tables.METRICS["psnr"], list("abcdefgh")
    pairs, told = list(itertools.combinations(names, 2)), []
    for _ in range(400):
        means = dict(zip(names, rng.normal(0, 1, len(names)), strict=True))
        found = {
            (one, other): (gap := means[one] - means[other], gap - 1.96 * 2**0.5, gap + 1.96 * 2**0.5)
            for one, other in itertools.permutations(names, 2)
        }
        verdicts = {one["verdict"] for one in equal_bits._tested(found, pairs, metric).values()}
        told.append(verdicts != {UNDECIDED})
    assert 0.01 < np.mean(told) < 0.08


def test_holms_p_values_are_those_of_his_paper():
    assert holm.adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm.adjusted([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and len(holm.adjusted([])) == 0


def test_the_page_has_a_row_for_each_format_and_says_which_are_not_told_apart(both, tmp_path):
    for table, name in zip(both, ("formats", "changes"), strict=True):
        tables.write_table(tmp_path / f"{name}.csv", table)
    formats, changes = (tables.read_table(tmp_path / f"{name}.csv") for name in ("formats", "changes"))
    [part] = page.equal_bits(formats, ["s"])
    assert part["title"] == "4.25 bits a weight, weights alone"
    assert part["columns"] == [("rtn", ""), ("gptq", ""), ("rtn", "hadamard")]
    cells = {name: cells for name, _, cells in part["rows"]}
    assert [None if c is None else c["method"] for c in cells["mxfp4"]] == ["rtn-mx", "gptq-mx", "rtn-mx-rotated"]
    assert cells["int4 g128 symmetric"][2] is None and cells["mxfp4"][2]["verdict"] == "best"
    assert "Not told apart from it: gptq-" in part["sentence"] and part["sentence"].endswith("the other 3 are worse.")
    solver = page.changes(changes, ["s"])["solver"]
    assert [(row["before"], row["after"], row["pairs"], row["better"]) for row in solver] == [("rtn", "gptq", 2, 2)]
    assert page.changes(changes, ["s"])["transforms"][0]["before"] == "none"
    assert page.equal_bits(formats, []) == [] and page.changes(changes, []) == {}


def test_no_table_without_two_formats_of_a_size():
    formats, changes = made(CELLS[:2])
    assert formats.empty and len(changes) == 1 and isinstance(formats, pd.DataFrame)
