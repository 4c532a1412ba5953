"""The shipped study of BRECQ on a consistency model, in a small form: effects of bits and steps, and its report."""

import html
import re

import pytest
import yaml
from conftest import CORES, copy_of_the_tree

NAME = "embedded-digits"
FILE = f"resources/experiments/{NAME}.yaml"
METHODS = ["float32", "rtn-w8", "rtn-w4", "rtn-w2-plain", "brecq-w2"]
SAMPLINGS = ["step-1", "steps-2"]
CALIBRATION = "calibration.txt"


def small(experiment):
    """The study with a method of each number of bits and BRECQ at two, one step and two, and few images."""
    experiment["methods"] = {method: experiment["methods"][method] for method in METHODS}
    experiment["methods"]["brecq-w2"]["solver"] |= {"iterations": 80, "learning_rate": 0.03, "batch_size": 16}
    experiment["samplings"] = {
        name: experiment["samplings"][name] | {"images": 200, "batch_size": 100} for name in SAMPLINGS
    }
    experiment["calibration"] |= {"prompts": CALIBRATION}
    experiment["reference"] = None
    return experiment | {"measuring": {"samplings": []}, "metrics": {"class-accuracy": None, "psnr": None}}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The project after a whole run of that."""
    project = copy_of_the_tree(tmp_path_factory.mktemp("digits"))
    classes = project.path("resources/prompts/digits-calibration.txt").read_text().splitlines()[:128]
    project.path(CALIBRATION).write_text("\n".join(classes) + "\n")
    experiment = small(yaml.safe_load(project.path(FILE).read_text()))
    project.path(FILE).write_text(yaml.safe_dump(experiment, sort_keys=False))
    done = project.snakemake("--cores", CORES, experiment=NAME)
    assert done.returncode == 0, done.stdout
    return project


@pytest.fixture(scope="module")
def rows(study):
    return {(row["method"], row["sampling"]): row for row in study.table(NAME, "summary")}


def interval(row, column):
    return float(row[f"{column}_low"]), float(row[f"{column}_high"])


def test_every_method_has_a_row_for_every_number_of_steps(rows):
    assert list(rows) == [(method, sampling) for method in METHODS for sampling in SAMPLINGS]
    assert {(row["sampling"], row["steps"], row["steps_of"]) for row in rows.values()} == {
        ("step-1", "1", ""), ("steps-2", "2", "step-1"),
    }  # fmt: skip
    assert {row["n_images"] for row in rows.values()} == {"200"}
    assert {row["status"] for row in rows.values()} == {"unmeasured"}  # no sampling is to be
    bits = {method: float(rows[method, "step-1"]["weight_bits"]) for method in METHODS}
    assert bits["float32"] == 32 and bits["rtn-w8"] > bits["rtn-w4"] + 3 > bits["brecq-w2"] + 4
    assert bits["brecq-w2"] == pytest.approx(bits["rtn-w2-plain"], abs=0.05)  # whose skip connections share a grid


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_eight_and_four_bits_are_near_the_float_model(rows, sampling):
    assert float(rows["float32", sampling]["class_accuracy"]) > 0.9
    for method, least_db in (("rtn-w8", 50), ("rtn-w4", 35)):
        row = rows[method, sampling]
        low, high = interval(row, "class_accuracy_change")
        assert low <= 0 <= high or abs(float(row["class_accuracy_change"])) < 0.02
        assert interval(row, "psnr_db")[0] > least_db


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_two_bits_break_by_rounding_and_brecq_stands_between(rows, sampling):
    order = ("rtn-w2-plain", "brecq-w2", "rtn-w4")
    broken, learned, four = (interval(rows[method, sampling], "psnr_db") for method in order)
    assert broken[1] < 20 < learned[0] and learned[1] < four[0]
    broken, learned = (interval(rows[method, sampling], "class_accuracy") for method in order[:2])
    assert broken[1] < 0.8 < learned[0]


def test_brecq_loses_less_than_rounding_on_its_own_grid(study):
    layers = [row for row in study.table(NAME, "layers") if row["method"] == "brecq-w2"]
    errors = {(float(row["error_before"]), float(row["relative_error"])) for row in layers}  # a pair for each block
    assert len(errors) > 5 and all(learned < rounded for rounded, learned in errors)


def test_the_report_sets_the_steps_side_by_side(study):
    page = study.path(f"results/{NAME}/report.html").read_text()
    section = re.search(r"with more steps</h2>(.*?)</section>", page, flags=re.DOTALL)[1]
    assert section.count("<picture>") == 1
    text = html.unescape(re.sub(r"<[^>]*>", " ", section))
    assert "Class accuracy, 1 step " in text and "Class accuracy, 2 steps " in text
    assert re.findall(r'<th scope="row">([\w-]+)</th>', section) == METHODS
    assert study.path(f"results/{NAME}/figures/steps.png").read_bytes().startswith(b"\x89PNG")
