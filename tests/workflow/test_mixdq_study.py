"""The shipped study of MixDQ, in a small form: its ablation at four bits, its report, and reruns for another budget."""

import html
import re

import pytest
import yaml
from conftest import CORES, copy_of_the_tree

from quantwatt.artifacts.layout import FIGURES

NAME = "embedded-mixdq"
FILE = f"resources/experiments/{NAME}.yaml"
ABLATION = ["float32", "naive-w4a8", "bos-w4a8", "mixed-w4a8", "mixdq-w4a8"]
MEASURED = "mixed-milliseconds-0.9"
CALIBRATION = "calibration.txt"


def small(experiment):
    """The study with its ablation at four bits, few images, one average of weights, and a time that none meets."""
    methods = experiment["methods"] = {method: experiment["methods"][method] for method in [*ABLATION, MEASURED]}
    for method in ("mixed-w4a8", "mixdq-w4a8"):
        methods[method]["allocation"]["programs"][0]["targets"] = 1
    methods[MEASURED]["allocation"]["programs"][0]["budget"]["milliseconds"] = 1e-6
    experiment["sensitivities"]["one-step"] |= {"images": 2, "batch_size": 2}
    costs = {"rounds": 1, "seconds": 0.001, "blocks": 0}
    experiment["sensitivities"]["measured"] |= {
        "images": 1,
        "exclude": ["down_blocks.*", "up_blocks.*"],
        "costs": costs,
    }
    experiment["calibration"] |= {"prompts": CALIBRATION, "batch_size": 16}
    experiment["samplings"]["step-1"] |= {"images": 32, "batch_size": 32}
    return experiment | {"measuring": {"samplings": []}, "metrics": {"psnr": None}}


def write(project, experiment):
    project.path(FILE).write_text(yaml.safe_dump(experiment, sort_keys=False))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The project after a whole run of that."""
    project = copy_of_the_tree(tmp_path_factory.mktemp("mixdq"))
    prompts = project.path("resources/prompts/shapes-calibration.txt").read_text().splitlines()[:16]
    project.path(CALIBRATION).write_text("\n".join(prompts) + "\n")
    write(project, small(yaml.safe_load(project.path(FILE).read_text())))
    project.commit()
    done = project.snakemake("--cores", CORES, experiment=NAME)
    assert done.returncode == 0, done.stdout
    return project


@pytest.fixture
def project(study):
    yield study
    study.restore()


@pytest.fixture(scope="module")
def rows(study):
    return {row["method"]: row for row in study.table(NAME, "summary")}


def psnr(row):
    """(low, high) in dB."""
    return float(row["psnr_db_low"]), float(row["psnr_db_high"])


def test_the_ablation_stands_in_the_order_of_the_paper(rows):
    assert list(rows) == [*ABLATION, MEASURED]
    naive, bos, mixed, mixdq = (psnr(rows[method]) for method in ABLATION[1:])
    assert naive[1] < 30  # dB: clearly damaged
    assert naive[1] < bos[0] and bos[1] < mixdq[0]
    assert mixed[1] < bos[0]  # by the output's SQNR alone, bits are taken where images need them


def test_what_is_compared_has_the_same_bits(rows):
    for method in ABLATION[2:]:
        for bits, more in (("weight_bits", 0.1), ("activation_bits", 0.2)):  # more: the inputs that stay in 16 bit
            assert float(rows[method][bits]) < float(rows["naive-w4a8"][bits]) + more
        assert rows[method]["status"] == "unmeasured" and rows[method]["n_images"] == "32"


def test_every_layer_was_tried_in_every_format_and_mixed_methods_use_several(study):
    alone = [row for row in study.table(NAME, "sensitivity") if row["sensitivity"] == "one-step"]
    layers = {row["layer"] for row in alone if row["group"] == "content"}, {row["layer"] for row in alone}
    assert 50 < len(layers[0]) < len(layers[1]) - 50
    assert {row["candidate"] for row in alone} == {"w8", "w4", "w2", "a8", "a4"}
    bits = {}
    for row in study.table(NAME, "layers"):
        bits.setdefault(row["method"], set()).add(row["value_bits"])
    assert {method: len(found) for method, found in bits.items()} == {
        "naive-w4a8": 1, "bos-w4a8": 1, "mixed-w4a8": 3, "mixdq-w4a8": 3,
    }  # fmt: skip


def test_a_time_that_this_device_cannot_meet_is_a_row_that_says_so(rows):
    assert rows[MEASURED]["status"] == "unsupported" and rows[MEASURED]["psnr_db"] == ""
    assert "no choice of int8, float for " in rows[MEASURED]["reason"]
    assert "; the nearest feasible budget is " in rows[MEASURED]["reason"]


def test_the_report_has_the_ablation_the_budgets_and_the_sensitivity(study):
    page = study.path(f"results/{NAME}/report.html").read_text()
    section = re.search(r"<h2>Formats chosen by layer or by step</h2>(.*?)</section>", page, flags=re.DOTALL)[1]
    assert section.count("<picture>") == 2  # budget and sensitivity
    text = html.unescape(re.sub(r"<[^>]*>", " ", section))
    assert "mixdq-w4a8 is significantly better (intervals apart)" in text and "most sensitive of" in text
    listed = re.findall(r'<th scope="row">([\w.-]+)', page)
    assert {*ABLATION, MEASURED} <= set(listed)
    for figure in ("budget", "sensitivity"):
        assert study.path(f"results/{NAME}/figures/{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_another_budget_reruns_only_the_allocation_and_what_follows(project):
    experiment = yaml.safe_load(project.path(FILE).read_text())
    experiment["methods"]["mixdq-w4a8"]["allocation"]["programs"][0]["budget"] = {"bits": 5}
    write(project, experiment)
    method = "tiny-sdxl, mixdq-w4a8"
    stages = ("Solve integer programs: ", "Try choices on images: ", "Allocate formats: ", "Quantize ")
    cell = {f"Generate images: {method}, step-1", f"Measure {method}, step-1", f"Score psnr: {method}, step-1"}
    tables = {"Write the tables", "Find what to take", "Write the report"} | {f"Draw {name}" for name in FIGURES}
    assert project.plan(experiment=NAME) == {stage + method for stage in stages} | cell | tables
