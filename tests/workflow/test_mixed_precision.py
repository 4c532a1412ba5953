"""Mixed allocations, from layers tried alone to each layer's format, and the jobs that a change reruns."""

import csv
import json

import pytest
from conftest import CORES, copy_of_the_tree

from quantwatt.artifacts import sensitivity_table

EXPERIMENT = """
models:
  tiny-sd3: {family: sd3, path: resources/models/tiny-sd3, dtype: float32, text_encoder_3: false,
             max_sequence_length: 1}
baseline: float32
methods:
  float32:
  mixed-bits:
    allocation:
      name: mixed
      sensitivity: alone
      programs:
        - {candidates: [w8, w4, w2], objective: sqnr, budget: {bits: 4}, targets: 3, tolerance: 0.2}
        - {candidates: [a8, a4], objective: noise, budget: {bits: 7}, targets: 2, tolerance: 0.2}
  mixed-time:
    allocation:
      name: mixed
      sensitivity: alone
      programs: [{candidates: [int8, float], objective: noise, budget: {milliseconds: 100, of: baseline}}]
sensitivities:
  alone:
    candidates:
      w8: {weights: {format: integer, bits: 8, symmetric: true}}
      w4: {weights: {format: integer, bits: 4, symmetric: true}}
      w2: {weights: {format: integer, bits: 2, symmetric: true}}
      a8: {activations: {bits: 8, granularity: tensor}}
      a4: {activations: {bits: 4, granularity: tensor}}
      int8: {weights: {format: integer, bits: 8, symmetric: true}, activations: {bits: 8}}
      float: {weights: null, activations: null}
    exclude: ["transformer_blocks.[1-5].*", "*.norm1*"]
    prompts: resources/prompts/shapes-calibration.txt
    images: 2
    steps: 1
    height: 64
    width: 64
    batch_size: 2
    jobs: 2
    costs: {rounds: 1, seconds: 0.001, blocks: 0}
samplings:
  steps-1: {prompts: resources/prompts/shapes-test.txt, images: 2, steps: 1, height: 64, width: 64}
"""
FILE = "resources/experiments/mixing.yaml"
RESULTS = "results/mixing"
METHODS = ("mixed-bits", "mixed-time")
ALLOCATIONS = [f"{RESULTS}/allocation/tiny-sd3/{method}.json" for method in METHODS]
ALONE = [f"Try layers alone: tiny-sd3, alone, job {job}" for job in (0, 1)]
GATHER = "Gather the sensitivity of layers: tiny-sd3, alone"
COSTS = "Measure layers: tiny-sd3, alone"
MODEL = "Describe model tiny-sd3"


@pytest.fixture(scope="module")
def mixing(tmp_path_factory):
    """The project with that experiment's allocations, and nothing else, made."""
    project = copy_of_the_tree(tmp_path_factory.mktemp("mixing"))
    project.path(FILE).write_text(EXPERIMENT)
    project.commit()
    done = project.snakemake("--cores", CORES, *ALLOCATIONS, experiment="mixing")
    assert done.returncode == 0, done.stdout
    return project


@pytest.fixture
def project(mixing):
    yield mixing
    mixing.restore()


def plan(project):
    return project.plan(*ALLOCATIONS, experiment="mixing")


def chosen(method):
    """Jobs from a method's integer programs to its allocation."""
    jobs = {f"Solve integer programs: tiny-sd3, {method}", f"Allocate formats: tiny-sd3, {method}"}
    return jobs | ({"Try choices on images: tiny-sd3, mixed-bits"} if method == "mixed-bits" else set())


CHOSEN = chosen("mixed-bits") | chosen("mixed-time")
TRIED = {*ALONE, GATHER} | CHOSEN


def allocation(project, method):
    return json.loads(project.path(f"{RESULTS}/allocation/tiny-sd3/{method}.json").read_text())


def test_every_step_has_its_table_and_the_allocation_keeps_to_the_budget(mixing):
    results = mixing.path(RESULTS)
    table = sensitivity_table.by_layer(sensitivity_table.read(results / "sensitivity/tiny-sd3/alone.csv"))
    layers = json.loads((results / "models/tiny-sd3/manifest.json").read_text())["layers"]
    assert table.keys() == {name for name in layers if name.startswith("transformer_blocks.0.") and "norm1" not in name}
    found = allocation(mixing, "mixed-bits")
    assert found.keys() == table.keys()
    weights = {name: layers[name]["in_features"] * layers[name]["out_features"] for name in found}
    bits = sum(weights[name] * formats["weights"]["bits"] for name, formats in found.items()) / sum(weights.values())
    assert 3.5 <= bits <= 4.2 and len({formats["weights"]["bits"] for formats in found.values()}) > 1
    inputs = {name: own["a8"]["inputs"] for name, own in table.items()}
    act = {name: formats["activations"]["bits"] for name, formats in found.items()}
    assert 6.5 <= sum(act[name] * inputs[name] for name in act) / sum(inputs.values()) <= 7.2 + 1e-4
    with (results / "allocation/tiny-sd3/mixed-bits/trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    with (results / "allocation/tiny-sd3/mixed-bits/candidates.csv").open() as file:
        candidates = list(csv.DictReader(file))
    assert [(row["program"], row["number"]) for row in trials] == [
        (row["program"], row["number"])
        for row in candidates
        if sum(other["program"] == row["program"] for other in candidates) > 1
    ]
    assert not allocation(mixing, "mixed-time")  # a hundred times the baseline's time: nothing need be rounded


def test_nothing_is_left_to_do(project):
    assert plan(project) == set()


def test_every_table_can_be_asked_for_alone(project):
    tables = ("sensitivity/tiny-sd3/alone.csv", "costs/tiny-sd3/alone.csv", "allocation/tiny-sd3/mixed-bits/trials.csv")
    assert project.plan(*(f"{RESULTS}/{table}" for table in tables), experiment="mixing") == set()


def test_another_budget_reruns_only_the_allocation(project):
    project.replace(FILE, "budget: {bits: 4}", "budget: {bits: 5}")
    assert plan(project) == chosen("mixed-bits")


def test_an_objective_that_another_method_has_too_reruns_only_the_allocation(project):
    project.replace(FILE, "objective: sqnr, budget: {bits: 4}", "objective: noise, budget: {bits: 4}")
    project.replace(FILE, "objective: noise, budget: {bits: 7}", "objective: sqnr, budget: {bits: 7}")
    assert plan(project) == chosen("mixed-bits")


def test_another_part_of_the_baselines_time(project):
    project.replace(FILE, "milliseconds: 100,", "milliseconds: 200,")
    assert plan(project) == chosen("mixed-time")


def test_an_interrupted_scatter_lacks_one_job(project):
    lost = {project.path(f"{RESULTS}/sensitivity/tiny-sd3/{name}.csv"): None for name in ("alone/job-1", "alone")}
    for path in lost:
        lost[path] = path.read_bytes()
        path.unlink()
    try:
        table = f"{RESULTS}/sensitivity/tiny-sd3/alone.csv"
        assert project.plan(table, experiment="mixing") == {ALONE[1], GATHER}
    finally:
        for path, content in lost.items():
            path.write_bytes(content)


def test_how_costs_are_measured_is_nothing_to_the_scores(project):
    project.replace(FILE, "rounds: 1", "rounds: 2")
    assert plan(project) == {COSTS} | chosen("mixed-time")


def test_another_solver_is_nothing_to_the_programs_and_their_trials(project):
    project.replace(FILE, "  mixed-bits:\n", "  mixed-bits:\n    solver: {name: hqq}\n")
    assert plan(project) == {"Allocate formats: tiny-sd3, mixed-bits"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    images: 2\n", "    images: 3\n"),
        ("    batch_size: 2\n", "    batch_size: 1\n"),
        ("objective: noise, budget: {milliseconds", "objective: psnr, budget: {milliseconds"),
    ],
)
def test_another_trial_of_layers_measures_none(project, old, new):
    project.replace(FILE, old, new)
    assert plan(project) == TRIED


def test_an_added_candidate_is_tried_and_measured_with_the_others(project):
    project.replace(FILE, "      a8: {", "      w3: {weights: {format: integer, bits: 3}}\n      a8: {")
    assert plan(project) == TRIED | {COSTS}


def test_a_candidate_that_was_tried_is_only_chosen_from(project):
    project.replace(FILE, "candidates: [w8, w4, w2]", "candidates: [w8, w4]")
    assert plan(project) == chosen("mixed-bits")


@pytest.mark.parametrize(
    ("module", "jobs"),
    [
        ("allocate/programs", CHOSEN),
        ("allocate/integer_program", CHOSEN),
        ("allocate/layer_costs", {COSTS} | chosen("mixed-time")),
        ("allocate/sensitivity", TRIED),
        ("allocate/rounding", TRIED | {COSTS}),
        ("formats/integer", TRIED | {COSTS}),
        ("formats/nf4", set()),
        ("models/families/sd3", TRIED | {COSTS, MODEL}),
        ("models/families/sdxl", set()),
        ("allocate/allocations/uniform", set()),
    ],
)
def test_a_module(project, module, jobs):
    with project.path(f"workflow_scripts/quantwatt/{module}.py").open("a") as file:
        file.write("CHANGED = True\n")
    assert plan(project) == jobs


def back(project, method):
    """Undo a budget that cannot be met: only what the method chooses runs again."""
    project.restore()
    assert plan(project) == chosen(method)
    done = project.snakemake("--cores", CORES, *ALLOCATIONS, experiment="mixing")
    assert done.returncode == 0, done.stdout


def test_a_measured_budget_that_cannot_be_met_is_a_result_that_says_which_can(project):
    project.replace(FILE, "milliseconds: 100,", "milliseconds: 0.0001,")
    checkpoint = f"{RESULTS}/checkpoints/tiny-sd3/mixed-time/manifest.json"
    done = project.snakemake("--cores", "1", ALLOCATIONS[1], checkpoint, experiment="mixing")
    assert done.returncode == 0, done.stdout
    (sentence,) = allocation(project, "mixed-time").values()
    assert sentence.startswith("methods.mixed-time.allocation.programs.0.budget: no choice of int8, float for ")
    assert "; the nearest feasible budget is " in sentence and sentence.endswith(" of the baseline's).")
    quantized = json.loads(project.path(checkpoint).read_text())
    assert (quantized["status"], quantized["reason"]) == ("unsupported", sentence)
    back(project, "mixed-time")


def test_bits_that_no_choice_averages_end_the_run_and_say_which_can(project):
    project.replace(FILE, "budget: {bits: 4}", "budget: {bits: 1}")
    done = project.snakemake("--cores", "1", ALLOCATIONS[0], experiment="mixing")
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert "error: methods.mixed-bits.allocation.programs.0.budget.bits: no choice of w8, w4, w2 for " in done.stdout
    assert "; the nearest average is 2." in done.stdout
    back(project, "mixed-bits")


def test_an_unknown_sensitivity_is_refused_by_name(project):
    done = project.snakemake("-n", f"{RESULTS}/sensitivity/tiny-sd3/alome.csv", experiment="mixing")
    assert done.returncode != 0 and "there is no sensitivity 'alome'; did you mean 'alone'" in done.stdout
