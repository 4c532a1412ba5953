"""Scores by the prompts' category: means over the images of each, of metrics that have values of images."""

import numpy as np
import pytest

from quantwatt.data import prompts
from quantwatt.report import categories
from quantwatt.report.cells import Cell

PROMPTS = "prompt\tCategory\na red cat\tAnimals\na blue car\tVehicles\na dog\tAnimals\n"
SCORES = {
    "psnr": {"values": np.array([30.0, 20, 34, 32, 22]), "weights": None, "log_values": False},
    "geneval-position": {"values": np.array([0.0, 1, 1, 0, 0]), "weights": np.array([0, 1, 1, 0, 1]),
                         "log_values": False},
    "fid": {"values": None, "value": 3.0},
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    (tmp_path / "prompts.tsv").write_text(PROMPTS)
    (tmp_path / "list.txt").write_text("a red cat\na blue car\n")
    return tmp_path / "prompts.tsv"


def table(path, scores=SCORES):
    cell = Cell("m", "w4", "s", {"status": "ok"}, {"status": "ok"}, {"status": "ok"}, scores)
    return categories.categories_table([cell], {"s": {"prompts": str(path)}})


def test_a_category_is_the_column_beside_the_prompt(path):
    assert prompts.categories(path) == ["Animals", "Vehicles", "Animals"]
    assert prompts.read(path)[0] == ["a red cat", "a blue car", "a dog"]
    assert prompts.categories(path.with_name("list.txt")) is None


def test_means_over_the_images_of_each_category(path):
    found = table(path).set_index(["metric", "category"])
    assert found["value"].to_dict() == {  # images 3 and 4 have the first two prompts again
        ("psnr", "Animals"): 32, ("psnr", "Vehicles"): 21,
        ("geneval-position", "Vehicles"): 0.5, ("geneval-position", "Animals"): 1,
    }  # fmt: skip
    assert found["n_images"].to_dict()["psnr", "Animals"] == 3
    animals = found.loc[("psnr", "Animals")]
    assert 30 <= animals["low"] < 32 < animals["high"] <= 34
    assert np.isnan(found.loc[("geneval-position", "Animals"), "low"])  # one image


def test_lists_and_texts_have_no_categories(path):
    assert table(path.with_name("list.txt")).empty
    assert categories.categories_table([], {"s": {"texts": "x"}}).columns.tolist() == categories.COLUMNS


def test_logarithms_are_means_of_what_they_are_logarithms_of(path):
    found = table(path, {"perplexity": {"values": np.log([2.0, 3, 8]), "weights": None, "log_values": True}})
    assert dict(zip(found["category"], found["value"], strict=True)) == pytest.approx({"Animals": 4, "Vehicles": 3})
