"""One run with a method of every kind: block solvers, transforms, static activations, libraries not installed here."""

import csv
import json

import pytest
from conftest import CORES, copy_of_the_tree

from quantwatt.artifacts.layout import FIGURES

EXPERIMENT = """
models:
  tiny-sd3: {family: sd3, path: resources/models/tiny-sd3, dtype: float32, text_encoder_3: false,
             max_sequence_length: 1}
baseline: float32
methods:
  float32:
  qronos-w3: {solver: {name: qronos}, weights: {format: integer, bits: 3}}
  brecq-w2: {solver: {name: brecq, iterations: 60, batch_size: 4, learning_rate: 0.1, activation_iterations: 2},
             weights: {format: integer, bits: 2, clip_search: true},
             activations: {bits: 8, granularity: tensor, dynamic: false, symmetric: false}}
  hqq-w4: {solver: {name: hqq}, weights: {format: integer, bits: 4, granularity: group, group_size: 64,
                                          zero_point: float}}
  svdquant-w4a4: {solver: {name: gptq}, weights: {format: integer, bits: 4, granularity: group, group_size: 64},
                  activations: {bits: 4},
                  transforms: [{name: segments}, {name: smoothing, alpha: search, grid: 3}, {name: low-rank, rank: 4}]}
  nf4-a8: {weights: {format: nf4}, activations: {bits: 8}}
  smooth-w8a8: {weights: {format: integer, bits: 8, symmetric: true}, activations: {bits: 8},
                transforms: [{name: smoothing}]}
  torchao-int8: {weights: {format: torchao, configuration: int8-weight-only}}
  torchao-float8-dynamic: {weights: {format: torchao, configuration: float8-dynamic}}
  auto-gptq-w4: {solver: {name: auto-gptq}, weights: {format: integer, bits: 4}}
samplings:
  seed-0: &sampling {prompts: resources/prompts/shapes-test.txt, images: 4, steps: 2, guidance: 3.0, height: 64,
                     width: 64, batch_size: 4}
calibration: {prompts: calibration.txt, steps: 2, guidance: 3.0, height: 64, width: 64, timesteps: 2,
              timesteps_per_prompt: 1, batch_size: 8}
measuring:  # not those that multiply as another one here or in the smoke experiment does
  {processes: 1, blocks: 1, phases_s: 0, methods: [brecq-w2, svdquant-w4a4, nf4-a8, torchao-int8,
                                                   torchao-float8-dynamic, auto-gptq-w4]}
judge: {model: "local-dir:resources/models/judge", pretrained: null}
metrics: {psnr: }
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The project after a whole run of that experiment."""
    project = copy_of_the_tree(tmp_path_factory.mktemp("kinds"))
    prompts = project.path("resources/prompts/shapes-calibration.txt").read_text().splitlines()[:8]
    project.path("calibration.txt").write_text("\n".join(prompts) + "\n")
    project.path("resources/experiments/kinds.yaml").write_text(EXPERIMENT)
    project.commit()
    done = project.snakemake("--cores", CORES, experiment="kinds")
    assert done.returncode == 0, done.stdout
    again = project.snakemake("-n", experiment="kinds")
    assert "Nothing to be done" in again.stdout, again.stdout
    return project


@pytest.fixture(scope="module")
def results(finished):
    return finished.path("results/kinds")


@pytest.fixture(scope="module")
def rows(results):
    with (results / "tables/summary.csv").open() as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def layers(results, method):
    return json.loads((results / f"checkpoints/tiny-sd3/{method}/manifest.json").read_text())["layers"]


def test_every_method_ends_in_a_row_with_its_kind_of_compute(rows):
    compute = {method: (row["status"], row["compute"]) for method, row in rows.items()}
    assert compute == {
        "float32": ("ok", "real"),
        "qronos-w3": ("unmeasured", "real"),
        "brecq-w2": ("ok", "real"),
        "hqq-w4": ("unmeasured", "real"),
        "svdquant-w4a4": ("ok", "real"),
        "nf4-a8": ("simulated", "simulated"),
        "smooth-w8a8": ("unmeasured", "real"),
        "torchao-int8": ("ok", "real"),
        "torchao-float8-dynamic": ("unsupported", ""),
        "auto-gptq-w4": ("unsupported", ""),
    }
    assert "compute capability" in rows["torchao-float8-dynamic"]["reason"]
    assert "make backends" in rows["auto-gptq-w4"]["reason"]
    simulated = rows["nf4-a8"]
    assert "no kernel computes nf4 W4A8" in simulated["reason"]
    for figure in ("latency_s", "energy_j", "memory_mb"):
        assert simulated[figure] == simulated[f"{figure}_low"] == simulated[f"{figure}_high"] == ""
    for method, row in rows.items():
        assert (row["psnr_db"] != "") == (row["status"] != "unsupported" and method != "float32")


def test_reports_hold_errors_before_and_after_with_seconds_and_joules(results):
    kinds = {"qronos-w3": "float outputs", "brecq-w2": "block outputs", "hqq-w4": "weights", "svdquant-w4a4": "outputs"}
    for method, kind in kinds.items():
        for layer in layers(results, method).values():
            assert layer["error_of"] == kind and layer["energy_j"] > 0 and layer["seconds"] > 0
            assert layer["relative_error"] >= 0 and layer["error_before"] > 0
    better = [layer["relative_error"] < layer["error_before"] for layer in layers(results, "svdquant-w4a4").values()]
    assert sum(better) > 0.9 * len(better)


def test_brecq_comes_below_rounding_in_every_block(results):
    errors = {}
    for name, layer in layers(results, "brecq-w2").items():
        block = ".".join(name.split(".")[:2]) if name.startswith("transformer_blocks") else name
        errors.setdefault(block, set()).add((layer["error_before"], layer["relative_error"]))
    assert len(errors) == 6
    for block, (pair,) in errors.items():  # one error for all layers of a block
        assert pair[1] < pair[0], block


# What a change reruns, where test_invalidation.py's experiment has no such method.
def rerun(*methods):
    jobs = {"Write the tables", "Find what to take", "Write the report"} | {f"Draw {name}" for name in FIGURES}
    for method in methods:
        jobs |= {f"Quantize tiny-sd3, {method}", f"Generate images: tiny-sd3, {method}, seed-0"}
        jobs |= {f"Measure tiny-sd3, {method}, seed-0", f"Score psnr: tiny-sd3, {method}, seed-0"}
    return jobs


@pytest.mark.parametrize(
    ("module", "methods"),
    [
        ("formats/torchao", {"torchao-int8", "torchao-float8-dynamic"}),
        ("formats/trial", {"torchao-int8", "torchao-float8-dynamic"}),
        ("quantize/transforms/segments", {"svdquant-w4a4"}),
        ("quantize/solvers/adaround", {"brecq-w2"}),
        ("quantize/solvers/hqq", {"hqq-w4"}),
    ],
)
def test_a_module_reruns_the_methods_that_use_it(results, project, module, methods):
    with project.path(f"workflow_scripts/quantwatt/{module}.py").open("a") as file:
        file.write("CHANGED = True\n")
    assert project.plan(experiment="kinds") == rerun(*methods)


def test_the_chain_of_an_external_solver(results, project):
    with project.path("workflow_scripts/export_layers.py").open("a") as file:
        file.write("CHANGED = True\n")
    solved = {"Export layers: tiny-sd3", "Solve layers by auto-gptq: tiny-sd3, auto-gptq-w4"}
    assert project.plan(experiment="kinds") == solved | rerun("auto-gptq-w4")
    project.restore()
    with project.path("workflow_scripts/quantwatt/quantize/solvers/auto_gptq.py").open("a") as file:
        file.write("CHANGED = True\n")
    assert project.plan(experiment="kinds") == {max(solved)} | rerun("auto-gptq-w4")


def test_parts_of_a_layer_are_those_of_its_method(results):
    assert {"down", "up", "input_factor"} <= set(
        layers(results, "svdquant-w4a4")["transformer_blocks.0.attn.to_q"]["parts"]
    )
    assert "transformer_blocks.0.norm1.linear.5" in layers(results, "svdquant-w4a4")
    assert {"activation_scale", "activation_zero"} <= set(
        layers(results, "brecq-w2")["transformer_blocks.0.attn.to_q"]["parts"]
    )
    assert layers(results, "torchao-int8")["transformer_blocks.0.attn.to_q"]["library"] == "torchao"


def test_the_report_names_what_is_unsupported(results):
    page = (results / "report.html").read_text()
    assert "make backends" in page and "compute capability" in page
