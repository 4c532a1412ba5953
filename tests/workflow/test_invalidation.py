"""A change reruns exactly the jobs that it invalidates."""

import os
import subprocess

import pytest
import yaml

METHODS = ["float32", "rtn-w8a8", "gptq-w3"]
METRICS = ["fid", "kid", "clip-score", "psnr", "ssim"]
NAMES = ("quality_vs_cost", "cost_ratios", "energy", "phases", "layer_error", "power_trace", "image_grid", "seeds")
FIGURES = {f"Draw {name}" for name in (*NAMES, "layer_depth", "steps", "budget", "sensitivity")}
REPORT = {"Write the report"}
SUMMARY = {"Write the tables", "Find what to take", "Write the study's tables"} | FIGURES | REPORT
EXPERIMENT = "resources/experiments/smoke.yaml"


def cell(method):
    """Jobs on one method's images and after them."""
    return (
        {f"Generate images: tiny-sd3, {method}, steps-4", f"Measure tiny-sd3, {method}, steps-4"}
        | {f"Extract judge features: tiny-sd3, {method}, steps-4"}
        | {f"Score {metric}: tiny-sd3, {method}, steps-4" for metric in METRICS}
    )


def quantized(method):
    return {f"Quantize tiny-sd3, {method}"} | cell(method)


def allocated(method):
    return {f"Allocate formats: tiny-sd3, {method}"} | quantized(method)


def test_nothing_is_left_to_do(project):
    assert project.plan() == set()


def test_touching_every_file_reruns_nothing(project):
    listed = subprocess.run(["git", "ls-files"], cwd=project.folder, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        os.utime(project.path(name))
    for path in project.path("results").rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            os.utime(path)
    assert project.plan() == set()


def test_reordered_keys_and_comments_rerun_nothing(project):
    experiment = yaml.safe_load(project.path(EXPERIMENT).read_text())

    def reversed_keys(value):
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        return value

    # The order of methods is the order of the report's rows, so only what stands inside the entries is reordered.
    for kind in ("models", "methods", "samplings"):
        experiment[kind] = {name: reversed_keys(entry) for name, entry in experiment[kind].items()}
    text = yaml.safe_dump(dict(reversed(experiment.items())), sort_keys=False)
    project.path(EXPERIMENT).write_text(f"# a comment\n{text}")
    assert project.plan() == set()


def test_a_checkout_there_and_back_reruns_nothing(project):
    project.git("checkout", "--quiet", "-b", "elsewhere")
    for path in project.path("workflow_scripts").rglob("*.py"):
        path.write_text(path.read_text() + "CHANGED = True\n")
    weights = project.path("resources/models/tiny-sd3/transformer/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[::-1])
    project.git("-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--all", "-m", "x")
    project.git("checkout", "--quiet", "main")
    assert project.plan() == set()


def test_comments_and_how_jobs_are_run_rerun_nothing(project):
    for path in project.path("workflow_scripts").rglob("*.py"):
        added = "CHANGED = True" if path.parent.name == "jobs" else "# changed"
        path.write_text(f"{path.read_text()}{added}\n")
    assert project.plan() == set()


def test_a_methods_solver_settings(project):
    project.replace(EXPERIMENT, "solver: {name: gptq}", "solver: {name: gptq, damping: 0.02}")
    assert project.plan() == quantized("gptq-w3") | SUMMARY


def test_writing_a_default_out_reruns_nothing(project):
    project.replace(EXPERIMENT, "solver: {name: gptq}", "solver: {name: gptq, damping: 0.01, act_order: true}")
    assert project.plan() == set()


def test_a_methods_format(project):
    project.replace(EXPERIMENT, "bits: 3, granularity: channel", "bits: 4, granularity: channel")
    assert project.plan() == allocated("gptq-w3") | SUMMARY


@pytest.mark.parametrize(("module", "method"), [("gptq", "gptq-w3"), ("rtn", "rtn-w8a8")])
def test_a_solvers_module(project, module, method):
    with project.path(f"workflow_scripts/quantwatt/quantize/solvers/{module}.py").open("a") as file:
        file.write("CHANGED = True\n")
    assert project.plan() == quantized(method) | SUMMARY


@pytest.mark.parametrize(("metric", "settings"), [("fid", ("fid: {resamples: 20}", "fid: {resamples: 21}"))])
def test_a_metrics_settings(project, metric, settings):
    project.replace(EXPERIMENT, *settings)
    assert project.plan() == {f"Score {metric}: tiny-sd3, {method}, steps-4" for method in METHODS} | SUMMARY


@pytest.mark.parametrize("metric", ["psnr", "clip-score"])
def test_a_metrics_module(project, metric):
    with project.path(f"workflow_scripts/quantwatt/score/metrics/{metric.replace('-', '_')}.py").open("a") as file:
        file.write("CHANGED = True\n")
    assert project.plan() == {f"Score {metric}: tiny-sd3, {method}, steps-4" for method in METHODS} | SUMMARY


def test_a_method_added(project):
    project.replace(
        EXPERIMENT, "methods:\n", "methods:\n  nf4:\n    weights: {format: nf4}\n"
    )  # fmt: skip
    assert project.plan() == allocated("nf4") | SUMMARY


def test_a_method_removed(project):
    text = project.path(EXPERIMENT).read_text()
    start, stop = text.index("  gptq-w3:"), text.index("samplings:")
    project.path(EXPERIMENT).write_text(text[:start] + text[stop:])
    assert project.plan() == SUMMARY


@pytest.mark.parametrize("name", ["template.html", "scripts/layers.js", "vendor/plot.min.js"])
def test_a_piece_of_the_reports_page(project, name):
    with project.path(f"resources/report/page/{name}").open("a") as file:
        file.write("\n")
    assert project.plan() == REPORT


def test_a_prompt(project):
    path = project.path("resources/prompts/shapes-test.txt")
    path.write_text(path.read_text().replace("circle", "ring", 1))
    jobs = set().union(*(cell(method) for method in METHODS))
    assert project.plan() == jobs | SUMMARY


def test_more_blocks_only_measure_again(project):
    project.replace("tests/workflow/quick.yaml", "blocks: 4", "blocks: 5")
    assert project.plan() == {f"Measure tiny-sd3, {method}, steps-4" for method in METHODS} | SUMMARY


def test_what_stands_in_for_a_meter_only_measures_again(project):
    with project.path("workflow_scripts/quantwatt/measuring/meters/none.py").open("a") as file:
        file.write("CHANGED = True\n")
    assert project.plan() == {f"Measure tiny-sd3, {method}, steps-4" for method in METHODS} | SUMMARY


@pytest.mark.parametrize("change", [("idle_w", 11), ("full_w", 66)])
def test_another_wattage_does_not_quantize_anew(project, change):
    with project.path("tests/workflow/quick.yaml").open("a") as file:
        file.write(f"  {change[0]}: {change[1]}\n")
    assert project.plan() == {f"Measure tiny-sd3, {method}, steps-4" for method in METHODS} | SUMMARY


def test_another_judge_scores_anew(project):
    path = project.path("resources/models/judge/open_clip_model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    features = {f"Extract judge features: tiny-sd3, {method}, steps-4" for method in METHODS}
    scores = {f"Score {m}: tiny-sd3, {n}, steps-4" for m in ("fid", "kid", "clip-score") for n in METHODS}
    fetched = {"Fetch weights: judge", "Extract judge features: reference images"}
    assert project.plan() == fetched | features | scores | SUMMARY


def test_other_weights_under_the_same_path_are_another_model(project):
    path = project.path("resources/models/tiny-sd3/transformer/diffusion_pytorch_model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    jobs = set().union(*(allocated(method) for method in METHODS))
    assert project.plan() == {"Describe model tiny-sd3", "Calibrate tiny-sd3"} | jobs | SUMMARY


def test_a_lost_output_is_made_again(project):
    name = "results/smoke/scores/tiny-sd3/rtn-w8a8/steps-4/ssim.json"
    content = project.path(name).read_bytes()
    project.path(name).unlink()
    try:
        assert project.plan(name) == {"Score ssim: tiny-sd3, rtn-w8a8, steps-4"}
    finally:
        project.path(name).write_bytes(content)
