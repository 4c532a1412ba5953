"""One run of the embedded text models: predictions, scores, energy per sentence, and the report."""

import csv
import json

import pytest
from conftest import CORES, copy_of_the_tree

from quantwatt.report.tables import TOO_NOISY

EXPERIMENT = """
models:
  tiny-distilbert: {family: distilbert, path: resources/models/tiny-distilbert}
  tiny-gpt2: {family: gpt2, path: resources/models/tiny-gpt2}
baseline: fp32
methods:
  fp32:
  bf16: {dtype: bfloat16}
  int8-dynamic: {weights: {format: integer, bits: 8, symmetric: true}, activations: {bits: 8}}
  gptq-w2: {solver: {name: gptq}, weights: {format: integer, bits: 2}}
samplings:
  held-out:
    texts: {tiny-distilbert: few.tsv, tiny-gpt2: few.txt}
    max_length: 32
    new_tokens: 4
    batch_size: 8
calibration:
  texts: {tiny-distilbert: resources/texts/reviews-calibration.tsv, tiny-gpt2: resources/texts/manuals-test.txt}
  samples: 32
  max_length: 32
  batch_size: 8
measuring: {processes: 1, blocks: 1}
study: text-energy
metrics: {accuracy: , perplexity: }
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The project after a whole run of that experiment."""
    project = copy_of_the_tree(tmp_path_factory.mktemp("texts"))
    lines = project.path("resources/texts/reviews-test.tsv").read_text().splitlines()
    project.path("few.tsv").write_text("\n".join(lines[:201]) + "\n")
    manuals = project.path("resources/texts/manuals-test.txt").read_text()
    project.path("few.txt").write_text(manuals[:12_000])
    project.path("resources/experiments/few-texts.yaml").write_text(EXPERIMENT)
    project.commit()
    done = project.snakemake("--cores", CORES, experiment="few-texts")
    assert done.returncode == 0, done.stdout
    return project


@pytest.fixture(scope="module")
def results(finished):
    return finished.path("results/few-texts")


@pytest.fixture(scope="module")
def rows(results):
    with (results / "tables/summary.csv").open() as file:
        return {(row["model"], row["method"]): row for row in csv.DictReader(file)}


def test_every_precision_is_a_row_with_its_accuracy(rows):
    statuses = {"fp32": "ok", "bf16": "ok", "int8-dynamic": "ok", "gptq-w2": "ok"}
    assert {cell: row["status"] for cell, row in rows.items()} == {
        (model, method): status for model in MODELS for method, status in statuses.items()
    }
    for (model, _), row in rows.items():
        assert row["unit"] == "inference"
        assert row["n_images"] == ("200" if model == "tiny-distilbert" else rows["tiny-gpt2", "fp32"]["n_images"])
        assert float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"])
    assert 50 < int(rows["tiny-gpt2", "fp32"]["n_images"]) < 300  # windows of 32 tokens
    assert float(rows["tiny-distilbert", "fp32"]["accuracy"]) > 0.85
    assert 0.15 < float(rows["tiny-gpt2", "fp32"]["accuracy"]) < 0.6  # of next tokens
    assert 10 < float(rows["tiny-gpt2", "fp32"]["perplexity"]) < 100
    for model in MODELS:
        assert abs(float(rows[model, "int8-dynamic"]["accuracy_change"])) < 0.05
        assert float(rows[model, "gptq-w2"]["perplexity_change"]) > 0  # two bits hurt
        bits = {method: float(rows[model, method]["weight_bits"]) for method in METHODS}
        assert bits["fp32"] == 32 and bits["bf16"] == 16 and 2 < bits["gptq-w2"] < 3


@pytest.mark.parametrize(("model", "phases"), [("tiny-distilbert", ["forward"]), ("tiny-gpt2", ["forward", "decode"])])
def test_an_inference_has_a_cost_and_its_phases(results, rows, model, phases):
    for method in ("fp32", "bf16", "int8-dynamic"):
        measured = json.loads((results / f"measurements/{model}/{method}/held-out/measurement.json").read_text())
        assert measured["latency_s"]["median"] > 0 and measured["energy_j"]["value"] > 0
        for key, reason in (("latency_s", "latency_reason"), ("energy_j", "energy_reason")):
            row = rows[model, method]
            assert float(row[key]) > 0 if row[key] else row[reason] == TOO_NOISY  # beside other tests
        assert list(measured["phases"]) == phases
        assert all(phase["latency_s"] > 0 for phase in measured["phases"].values())


def test_the_studys_table_has_a_row_for_each_trial(results, rows):
    with (results / "study/trials.csv").open() as file:
        trials = {(row["model"], row["precision"]): row for row in csv.DictReader(file)}
    assert set(trials) == set(rows)
    for cell, row in trials.items():
        assert row["trial"] == "1" and float(row["mean_latency"]) > 0 and float(row["energy_per_inference_j"]) > 0
        assert float(row["accuracy"]) == pytest.approx(float(rows[cell]["accuracy"]))


def test_the_report_speaks_of_inferences(results):
    page = (results / "report.html").read_text()
    assert "J per inference" in page and "Accuracy" in page and "per image" not in page


FIGURES = ("quality_vs_cost", "cost_ratios", "energy", "phases", "layer_error", "power_trace", "seeds", "layer_depth")
SUMMARY = {"Write the tables", "Find what to take", "Write the study's tables", "Write the report"} | {
    f"Draw {name}" for name in FIGURES
}


METHODS = ("fp32", "bf16", "int8-dynamic", "gptq-w2")
MODELS = ("tiny-distilbert", "tiny-gpt2")


def scored(metric):
    return {f"Score {metric}: {model}, {method}, held-out" for model in MODELS for method in METHODS}


def cells(model, methods=METHODS):
    names = [f"{model}, {method}, held-out" for method in methods]
    jobs = ("Predict: {}", "Measure {}", "Score accuracy: {}", "Score perplexity: {}")
    return {job.format(name) for job in jobs for name in names}


EVERY_CELL = cells("tiny-distilbert") | cells("tiny-gpt2")
CHANGES = {
    "nothing": ("perplexity: }", "perplexity: {}}", set()),
    "a metric": ("accuracy: ,", "accuracy: {resamples: 500},", scored("accuracy") | SUMMARY),
    "calibration": (
        "samples: 32",
        "samples: 16",
        SUMMARY.union(
            *({f"Calibrate {m}", f"Quantize {m}, gptq-w2"} | cells(m, ["gptq-w2"]) for m in MODELS),
        ),
    ),
    "the texts' length": ("few.txt}\n    max_length: 32", "few.txt}\n    max_length: 24", EVERY_CELL | SUMMARY),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_reruns_what_it_invalidates(results, project, change):
    old, new, jobs = CHANGES[change]
    project.replace("resources/experiments/few-texts.yaml", old, new)
    assert project.plan(experiment="few-texts") == jobs


def test_another_sentence_reruns_what_reads_these_texts(results, project):
    lines = project.path("few.tsv").read_text().splitlines()
    project.path("few.tsv").write_text("\n".join(lines[:-1]) + "\n")
    assert project.plan(experiment="few-texts") == cells("tiny-distilbert") | SUMMARY
