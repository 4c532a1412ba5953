"""One run through every stage, and the files that it leaves."""

import csv
import json

import pytest

from quantwatt.report.tables import TOO_NOISY

METHODS = ["float32", "rtn-w8a8", "gptq-w3"]
FIGURES = ["quality_vs_cost", "cost_ratios", "energy", "phases", "layer_error", "power_trace", "image_grid", "seeds"]
FIGURES += ["layer_depth", "steps", "budget", "sensitivity"]


@pytest.fixture(scope="module")
def rows(finished):
    with finished.path("results/smoke/tables/summary.csv").open() as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def load(finished, name):
    return json.loads(finished.path(f"results/smoke/{name}").read_text())


def test_snakemake_says_which_cell_runs(finished):
    for line in (
        "Quantize tiny-sd3, gptq-w3",
        "Generate images: tiny-sd3, rtn-w8a8, steps-4",
        "Score fid: tiny-sd3, float32, steps-4",
    ):
        assert line in finished.output


def test_summary_has_one_row_per_cell_and_an_interval_for_every_measured_figure(rows):
    assert list(rows) == METHODS
    for row in rows.values():
        assert row["status"] == "ok" and row["n_images"] == "16"
        assert float(row["clip_score_low"]) <= float(row["clip_score"]) <= float(row["clip_score_high"])
        assert row["fid"] == "" and "more than 64 images on both sides, not 16 and 64" in row["fid_reason"]
    for method in ("rtn-w8a8", "gptq-w3"):
        for figure in ("psnr_db", "ssim"):
            assert (
                float(rows[method][f"{figure}_low"])
                <= float(rows[method][figure])
                <= float(rows[method][f"{figure}_high"])
            )
    assert rows["float32"]["psnr_db"] == "" and rows["float32"]["compute"] == "real"


def test_damage_follows_the_bits(rows):
    assert float(rows["rtn-w8a8"]["psnr_db"]) > float(rows["gptq-w3"]["psnr_db"]) + 5
    assert float(rows["float32"]["size_mb"]) > float(rows["rtn-w8a8"]["size_mb"]) > float(rows["gptq-w3"]["size_mb"])
    assert 8 < float(rows["rtn-w8a8"]["weight_bits"]) < 8.5 and rows["rtn-w8a8"]["activation_bits"] in ("8", "8.0")


def test_every_method_has_a_cost(rows):
    assert rows["float32"]["kernel"] == "torch linear" and "int8" in rows["rtn-w8a8"]["kernel"]
    assert rows["gptq-w3"]["kernel"] == "unpack and multiply in float"
    for row in rows.values():
        assert row["compute"] == "real" and row["meter"] in ("estimate", "rapl", "nvml")
        for figure in ("latency_s", "energy_j", "memory_mb"):
            noisy = row[f"{figure.rpartition('_')[0]}_reason"] == TOO_NOISY  # two processes tell little
            assert row[figure] == "" if noisy else float(row[figure]) > 0
        if not row["energy_j"] or not row["latency_s"]:
            continue
        watts = float(row["energy_j"]) / float(row["latency_s"])  # a mean of blocks and a median of runs
        assert row["meter"] != "estimate" or 1 < watts < 650  # 10 W idle to 65 W full, and a noisy machine
        assert row["energy_estimated"] == ("true" if row["meter"] == "estimate" else "false")


def test_a_method_is_measured_beside_the_baseline_in_turns(finished):
    cell = "measurements/tiny-sd3/rtn-w8a8/steps-4"
    measured = load(finished, f"{cell}/measurement.json")
    assert measured["in_pairs"] and measured["n_processes"] == 2 and measured["pairs"]["n"] >= 4
    assert measured["n_blocks"] + measured["n_invalid"] == measured["pairs"]["n"]
    assert measured["baseline"]["latency_s"]["median"] > 0
    for ratio in measured["ratio"].values():
        assert 0 < ratio["low"] <= ratio["value"] <= ratio["high"]
    assert list(measured["phases"]) == ["text", "denoise", "decode"]
    for phase in measured["phases"].values():
        assert phase["latency_s"] > 0 and phase["energy_j"] > 0 and phase["ratio"]["latency_s"]["value"] > 0
    with finished.path(f"results/smoke/{cell}/runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert {row["configuration"] for row in runs} == {"method", "baseline"} and {row["prompt"] for row in runs} == {
        "0",
        "1",
    }
    with finished.path(f"results/smoke/{cell}/power.csv").open() as file:
        spells = {(row["configuration"], row["process"], row["block"]) for row in csv.DictReader(file)}
    assert spells >= {
        ("method", "0", "0"),
        ("baseline", "0", "1"),
        ("method", "1", "denoise"),
        ("baseline", "1", "text"),
    }
    rested = {block for *_, block in spells if block.startswith("idle")}
    assert rested == (set() if measured["estimated"] else {"idle-before", "idle-after"})
    with finished.path(f"results/smoke/{cell}/blocks.csv").open() as file:
        blocks = list(csv.DictReader(file))
    sides = [row["configuration"] for row in blocks if row["part"] == "whole"]
    assert sides.count("method") == sides.count("baseline") == measured["pairs"]["n"]
    control = load(finished, "measurements/tiny-sd3/float32/steps-4/measurement.json")
    assert 0.2 < control["ratio"]["latency_s"]["value"] < 5  # not told more closely: a busy machine, two processes


def test_the_studys_tables(finished):
    with finished.path("results/smoke/study/quantization_results_with_energy.csv").open() as file:
        rows = {(row["Quantization Type"], row["Prompt Index"]): row for row in csv.DictReader(file)}
    assert {method for method, _ in rows} == set(METHODS)
    for prompt in "01":
        for method in METHODS:
            assert float(rows[method, prompt]["Average Time (s)"]) > 0
            assert float(rows[method, prompt]["Total Energy (J)"]) > 0
    with finished.path("results/smoke/study/intermediate_power_readings.csv").open() as file:
        readings = list(csv.DictReader(file))
    assert {row["Quantization Type"] for row in readings} == set(METHODS)
    assert all(float(row["Power (W)"]) > 0 for row in readings)


def test_images_pair_up_across_methods(finished):
    sets = [load(finished, f"images/tiny-sd3/{method}/steps-4/manifest.json") for method in METHODS]
    prompts = finished.path("resources/prompts/shapes-test.txt").read_text().splitlines()[:16]
    for images in sets:
        assert [image["prompt"] for image in images["images"]] == prompts
        assert [image["seed"] for image in images["images"]] == list(range(16))
    assert len({images["images"][3]["sha256"] for images in sets}) == 3


def test_every_manifest_says_where_it_comes_from(finished):
    for name in (
        "models/tiny-sd3/manifest.json",
        "checkpoints/tiny-sd3/gptq-w3/manifest.json",
        "images/tiny-sd3/float32/steps-4/manifest.json",
        "measurements/tiny-sd3/float32/steps-4/measurement.json",
    ):
        provenance = load(finished, name)["provenance"]
        assert provenance["commit"] and provenance["versions"]["torch"]


def test_figures_tables_and_report_are_there(finished):
    folder = finished.path("results/smoke")
    for figure in FIGURES:
        assert (folder / f"figures/{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"figures/{figure}.svg").read_text()
    page = (folder / "report.html").read_text()
    assert "rtn-w8a8" in page and ("int8 in C or oneDNN" in page or "oneDNN int8" in page) and "estimated" in page
    assert 'src="http' not in page and "@import" not in page


def test_layer_table_is_complete(finished):
    with finished.path("results/smoke/tables/layers.csv").open() as file:
        layers = list(csv.DictReader(file))
    assert {row["method"]: row["error_of"] for row in layers} == {"rtn-w8a8": "weights", "gptq-w3": "outputs"}
    for row in layers:
        for column in ("weight_bits", "activation_bits", "relative_error", "seconds"):
            assert float(row[column]) > 0


def test_quantizing_reports_its_layers_and_its_cost(finished):
    checkpoint = load(finished, "checkpoints/tiny-sd3/gptq-w3/manifest.json")
    assert len(checkpoint["layers"]) > 50
    for layer in checkpoint["layers"].values():
        assert 0 < layer["relative_error"] < 1 and layer["damping"] >= 0.01 and layer["seconds"] > 0
    assert checkpoint["quantize"]["seconds"] > 0 and checkpoint["quantize"]["energy_j"] > 0


def test_snakemake_report(finished, tmp_path):
    done = finished.snakemake("--report", str(tmp_path / "snakemake-report.html"))
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "snakemake-report.html").stat().st_size > 100_000
