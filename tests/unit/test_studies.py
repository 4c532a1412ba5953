"""Tables of the studies, from measurements with known joules."""

import csv
import json
import math

import pytest

import study
from quantwatt.artifacts import manifest
from quantwatt.config import experiment
from quantwatt.config.schemas import ConfigurationError
from quantwatt.measuring import protocol
from quantwatt.score import predictions

RUNS = """configuration,process,block,run,prompt,t_s,seconds,energy_j
method,0,0,0,0,10,2,100
method,0,0,1,1,12,4,300
method,1,0,0,0,30,4,220
method,1,1,0,1,40,2,
method,1,1,1,2,42,7,
baseline,0,1,0,0,20,2,900
"""
BLOCKS = """configuration,process,pair,part,block,images,seconds,energy_j,integral_j,invalid,reason,beside
method,0,0,whole,0,2,6,400,,False,,
method,0,0,decode,2,9,6,77,,False,,
method,1,0,whole,0,1,4,220,,False,,
method,1,1,whole,1,2,9,,,True,the energy counter was reset,
baseline,0,0,whole,1,1,2,900,,False,,
"""
POWER = """t_s,watts,configuration,process,block
0,20,method,0,idle-before
10.5,50,method,0,0
12.0,75,method,0,0
15.9,76,method,0,0
16.5,20,method,0,idle-after
18,99,method,0,decode
21,450,baseline,0,1
31,55,method,1,0
32,,method,1,0
41,90,method,1,1
43,91,method,1,1
"""


LATENCY_S = {"nf4": {"mean": 1.5}, "w4a8": None, "int8": {"mean": 2.5}}  # int8: measured without a meter


@pytest.fixture
def results(tmp_path):
    for method, latency_s in LATENCY_S.items():
        folder = tmp_path / "results/measurements/m" / method / "s"
        folder.mkdir(parents=True)
        for name, content in (("runs", RUNS), ("power", POWER), ("blocks", BLOCKS)):
            (folder / f"{name}.csv").write_text(content if method == "nf4" else content.splitlines()[0] + "\n")
        memory = {"value": 512.0} if latency_s else None
        record = {"memory_mb": memory, "latency_s": latency_s, "images_per_batch": 2}
        manifest.write_json(folder / "measurement.json", record)
        images = [{"file": f"shard-000/{i:05d}.png"} for i in range(2)]
        manifest.write_json(tmp_path / "results/images/m" / method / "s/manifest.json", {"images": images})
    return tmp_path / "results"


def test_sd35_large_energy(results, tmp_path):
    cells = [{"model": "m", "method": method, "sampling": "s"} for method in LATENCY_S]
    grid, output = tmp_path / "grid.json", tmp_path / "study/manifest.json"
    grid.write_text(json.dumps({"cells": cells}))
    study.main(["sd35-large-energy", "--results", str(results), "--grid", str(grid), "--output", str(output)])
    manifest.verify_files(output, manifest.read_json(output)["files"])
    with (output.parent / "intermediate_power_readings.csv").open() as file:
        readings = [tuple(row.values()) for row in csv.DictReader(file)]
    # The idle readings, the baseline's and an invalid block's are in no run; 12.0 s is the second run's first moment.
    assert [(row[0], row[1], row[2], float(row[3])) for row in readings] == [
        ("nf4", "0", "1", 50.0), ("nf4", "1", "1", 75.0), ("nf4", "1", "1", 76.0), ("nf4", "0", "2", 55.0),
    ]  # fmt: skip
    with (output.parent / "quantization_results_with_energy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["Quantization Type"], row["Prompt Index"]) for row in rows] == [
        ("nf4", "0"), ("nf4", "1"), ("nf4", "2"), ("w4a8", "0"), ("w4a8", "1"), ("int8", "0"), ("int8", "1"),
    ]  # fmt: skip
    first, second, invalid, simulated, _, *unmetered = rows
    assert float(first["Average Time (s)"]) == 3 and float(first["Total Energy (J)"]) == 320
    assert float(first["Average Power (W)"]) == pytest.approx(320 / 6)
    assert float(second["Average Time (s)"]) == 4 and float(second["Total Energy (J)"]) == 300  # its invalid run is out
    assert float(second["Average Power (W)"]) == 75 and second["Image File Names"] == "shard-000/00001.png"
    assert float(invalid["Average Time (s)"]) == 3 and invalid["Total Energy (J)"] == invalid["Average Power (W)"] == ""
    assert simulated["Total Energy (J)"] == simulated["Average Time (s)"] == simulated["Average Memory (MB)"] == ""
    assert [float(row["Average Time (s)"]) for row in unmetered] == [5, 5]  # 2.5 s an image, two in a run
    assert all(row["Total Energy (J)"] == row["Average Power (W)"] == "" for row in unmetered)


# --- text models

TRIALS = (
    "mean_latency std_latency throughput min_latency max_latency median_latency mean_power_w std_power_w min_power_w "
    "max_power_w median_power_w num_power_samples total_energy_j energy_per_inference_j energy_per_inference_mj "
    "inferences_per_joule accuracy num_correct num_samples_accuracy allocated_gb peak_allocated_gb reserved_gb "
    "num_parameters model_size_mb dtype"
).split()
ITEMS = [{"nll": 0.5, "tokens": 1, "correct": 1}, {"nll": 1.5, "tokens": 3, "correct": 1}]
SECONDS = [[0.2, 0.4, 0.6], [0.1, 0.1]]  # of runs of two inferences, in two processes
GPU = {"peak_mb": 13.0, "allocated_mb": 11.0, "reserved_mb": 16.0, "source": "torch.cuda peak allocated"}
INT8 = {"weights": {"format": "integer", "bits": 8}}
OOM = {"status": "oom", "reason": "out of memory", "energy_j": None, "energy_reason": "out of memory", "processes": []}


def write_text_cell(results, method, layers, items=ITEMS, memory=GPU, **changes):
    """Files of one cell of model m under sampling s, with the blocks and the power above."""
    measured, predicted = (results / name / "m" / method / "s" for name in ("measurements", "predictions"))
    measured.mkdir(parents=True)
    for name, content in (("power", POWER), ("blocks", BLOCKS)):
        (measured / f"{name}.csv").write_text(content)
    processes = [{"latency_s": protocol.summarize_latency([seconds], 2)} for seconds in SECONDS]
    record = {"status": "ok", "reason": None, "images_per_batch": 2, "device": {"kind": "cuda"}, "meter": "nvml",
              "estimated": False, "energy_j": {"value": 60.0}, "energy_reason": None,
              "processes": processes, "memory": memory}  # fmt: skip
    manifest.write_json(measured / "measurement.json", record | changes)
    checkpoint = {"status": "ok", "layers": layers, "size_bytes": 3_000_000, "model_settings": {"dtype": "float16"}}
    manifest.write_json(results / "checkpoints/m" / method / "manifest.json", checkpoint)
    predictions.write(predicted, items, {"texts": "data/sst2/dev.tsv"})
    return {"model": "m", "method": method, "sampling": "s", "kind": "text"}


@pytest.fixture
def trials(tmp_path):
    """{(method, trial): row} of the study's table, of what `write_text_cell` has written there."""
    manifest.write_json(tmp_path / "models/m/manifest.json", {"parameters": 66_000_000})

    def rows(*cells):
        grid, output = tmp_path / "grid.json", tmp_path / "study/manifest.json"
        grid.write_text(json.dumps({"cells": cells}))
        study.main(["text-energy", "--results", str(tmp_path), "--grid", str(grid), "--output", str(output)])
        manifest.verify_files(output, manifest.read_json(output)["files"])
        with (output.parent / "trials.csv").open() as file:
            return {(row["precision"], row["trial"]): row for row in csv.DictReader(file)}

    return rows


def numbers(row, *columns):
    return [row[column] and float(row[column]) for column in columns]


def test_a_trial_of_the_text_study_is_a_process(trials, tmp_path):
    found = trials(write_text_cell(tmp_path, "int8", {"a": INT8}), write_text_cell(tmp_path, "fp16", {}))
    assert list(found) == [("int8", "1"), ("int8", "2"), ("fp16", "1"), ("fp16", "2")]
    first, second, half, _ = found.values()
    columns = list(first)
    assert columns[columns.index("mean_latency") : columns.index("dtype") + 1] == TRIALS
    assert numbers(first, "mean_latency", "min_latency", "max_latency", "median_latency") == [0.4, 0.2, 0.6, 0.4]
    assert numbers(first, "std_latency", "throughput", "batch_size") == [0.2, 5, 2]  # 2 inferences in 0.4 s
    assert numbers(second, "mean_latency", "std_latency", "throughput") == [0.1, 0, 20]
    assert (first["dtype"], half["dtype"]) == ("int8", "float16")
    assert numbers(first, "num_parameters", "model_size_mb") == [66e6, 3]
    assert numbers(first, "accuracy", "num_correct", "num_samples_accuracy") == [0.5, 2, 4]
    assert float(first["perplexity"]) == pytest.approx(math.exp(2 / 4), rel=1e-7)
    assert numbers(first, "allocated_gb", "peak_allocated_gb", "reserved_gb") == [0.011, 0.013, 0.016]
    described = ("device", "status", "meter", "energy_estimated", "texts", "model", "sampling")
    assert [first[key] for key in described] == ["cuda", "ok", "nvml", "false", "dev.tsv", "m", "s"]


def test_energy_of_a_trial_is_that_of_its_good_blocks(trials, tmp_path):
    first, second = trials(write_text_cell(tmp_path, "fp16", {})).values()
    energy = ("total_energy_j", "energy_per_inference_j", "energy_per_inference_mj", "num_inferences_energy")
    assert numbers(first, *energy) == [400, 200, 200_000, 2]
    assert numbers(second, *energy) == [220, 220, 220_000, 1]  # its invalid block is out
    assert float(second["inferences_per_joule"]) == pytest.approx(1 / 220, rel=1e-7)
    power = ("mean_power_w", "min_power_w", "max_power_w", "median_power_w", "num_power_samples")
    assert numbers(first, *power) == [67, 50, 76, 75, 3]
    assert numbers(second, *power) == [55, 55, 55, 55, 1] and second["std_power_w"] == ""  # one reading has no spread


@pytest.mark.parametrize(
    ("changes", "memory", "empty"),
    [
        ({}, {"peak_mb": 900.0, "allocated_mb": None, "reserved_mb": None, "source": "peak RSS"}, TRIALS[19:22]),
        ({"energy_j": None, "energy_reason": "4 of 4 blocks were invalid"}, GPU, TRIALS[6:16]),
    ],
    ids=["cpu", "invalid"],
)
def test_what_a_text_study_could_not_measure_is_empty(trials, tmp_path, changes, memory, empty):
    for row in trials(write_text_cell(tmp_path, "fp16", {}, memory=memory, **changes)).values():
        assert [column for column in TRIALS if row[column] == ""] in (empty, ["std_power_w", *empty])
        assert row["energy_reason"] == (changes.get("energy_reason") or "")


def test_a_text_model_that_does_not_fit_has_its_quality_and_the_reason(trials, tmp_path):
    [(key, row)] = trials(write_text_cell(tmp_path, "fp32", {}, **OOM)).items()
    assert key == ("fp32", "") and (row["status"], row["reason"]) == ("oom", "out of memory")
    assert row["mean_latency"] == row["total_energy_j"] == row["peak_allocated_gb"] == ""
    assert numbers(row, "accuracy", "model_size_mb") == [0.5, 3]


def test_texts_without_labels_have_no_accuracy(trials, tmp_path):
    row, _ = trials(write_text_cell(tmp_path, "fp16", {}, items=[{"label": 0, "logits": [1.0, 0.0]}])).values()
    assert row["accuracy"] == row["perplexity"] == "" and row["mean_latency"] != ""


@pytest.mark.parametrize(
    ("name", "study", "other"),
    [("smoke", "text-energy", "text models"), ("embedded-text", "sd35-large-energy", "images")],
)
def test_a_study_of_other_models_is_refused(name, study, other):
    raw = experiment.read_yaml(experiment.EXPERIMENTS / f"{name}.yaml", "x.yaml") | {"study": study}
    with pytest.raises(ConfigurationError, match=f"x.yaml: study: {study} is one of {other}, and"):
        experiment.check_experiment(raw, "x.yaml")
