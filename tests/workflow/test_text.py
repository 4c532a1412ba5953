"""One run of the embedded text models: predictions, their scores, what a sentence costs, and the report."""

import csv
import json

import pytest

EXPERIMENT = """
models:
  tiny-distilbert: {family: distilbert, path: resources/models/tiny-distilbert}
baseline: fp32
methods:
  fp32:
  bf16: {dtype: bfloat16}
  int8-dynamic: {weights: {format: integer, bits: 8, symmetric: true}, activations: {bits: 8}}
  gptq-w2: {solver: {name: gptq}, weights: {format: integer, bits: 2}}
samplings:
  held-out: {texts: few.tsv, max_length: 32, batch_size: 8}
calibration: {texts: resources/texts/reviews-calibration.tsv, samples: 32, max_length: 32, batch_size: 8}
metrics: {accuracy: , perplexity: }
"""


@pytest.fixture(scope="module")
def results(finished):
    """The results folder of that experiment, run beside the smoke experiment's."""
    lines = finished.path("resources/texts/reviews-test.tsv").read_text().splitlines()
    finished.path("few.tsv").write_text("\n".join(lines[:201]) + "\n")
    finished.path("resources/experiments/few-texts.yaml").write_text(EXPERIMENT)
    finished.commit()
    done = finished.snakemake("--cores", "all", experiment="few-texts")
    assert done.returncode == 0, done.stdout
    return finished.path("results/few-texts")


@pytest.fixture(scope="module")
def rows(results):
    with (results / "tables/summary.csv").open() as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_every_precision_is_a_row_with_its_accuracy(rows):
    assert {method: row["status"] for method, row in rows.items()} == {
        "fp32": "ok", "bf16": "ok", "int8-dynamic": "ok", "gptq-w2": "simulated",
    }  # fmt: skip
    for row in rows.values():
        assert row["unit"] == "inference" and row["n_images"] == "200"
        assert float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"])
    assert float(rows["fp32"]["accuracy"]) > 0.85
    assert abs(float(rows["int8-dynamic"]["accuracy_change"])) < 0.05
    assert float(rows["gptq-w2"]["perplexity_change"]) > 0  # two bits hurt
    bits = {method: float(row["weight_bits"]) for method, row in rows.items()}
    assert bits["fp32"] == 32 and bits["bf16"] == 16 and 2 < bits["gptq-w2"] < 3


def test_a_sentence_has_a_cost_and_its_phase(results, rows):
    for method in ("fp32", "bf16", "int8-dynamic"):
        assert float(rows[method]["latency_s"]) > 0 and float(rows[method]["energy_j"]) > 0
    measured = json.loads((results / "measurements/tiny-distilbert/bf16/held-out/measurement.json").read_text())
    assert list(measured["phases"]) == ["forward"]


def test_the_report_speaks_of_inferences(results):
    page = (results / "report.html").read_text()
    assert "J per inference" in page and "Accuracy" in page and "per image" not in page


SUMMARY = {"Write the tables", "Write the report"} | {
    f"Draw {name}" for name in ("quality_vs_cost", "layer_error", "power_trace", "seeds", "layer_depth")
}


def scored(metric):
    return {f"Score {metric}: tiny-distilbert, {method}, held-out" for method in METHODS}


def cell(method):
    name = f"tiny-distilbert, {method}, held-out"
    return {f"Predict: {name}", f"Measure {name}", f"Score accuracy: {name}", f"Score perplexity: {name}"}


METHODS = ("fp32", "bf16", "int8-dynamic", "gptq-w2")
EVERY_CELL = set().union(*map(cell, METHODS))
CHANGES = {
    "nothing": ("perplexity: }", "perplexity: {}}", set()),
    "a metric": ("accuracy: ,", "accuracy: {resamples: 500},", scored("accuracy") | SUMMARY),
    "calibration": (
        "samples: 32",
        "samples: 16",
        {"Calibrate tiny-distilbert", "Quantize tiny-distilbert, gptq-w2"} | cell("gptq-w2") | SUMMARY,
    ),
    "the texts' length": ("{texts: few.tsv, max_length: 32", "{texts: few.tsv, max_length: 24", EVERY_CELL | SUMMARY),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_reruns_what_it_invalidates(results, project, change):
    old, new, jobs = CHANGES[change]
    project.replace("resources/experiments/few-texts.yaml", old, new)
    assert project.plan(experiment="few-texts") == jobs


def test_another_sentence_reruns_what_reads_the_texts(results, project):
    lines = project.path("few.tsv").read_text().splitlines()
    project.path("few.tsv").write_text("\n".join(lines[:-1]) + "\n")
    assert project.plan(experiment="few-texts") == EVERY_CELL | SUMMARY
