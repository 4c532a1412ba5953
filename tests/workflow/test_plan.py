"""Every experiment can be planned, and docs/code-map.md shows the graph that Snakemake runs."""

import itertools
import re
import subprocess
from pathlib import Path

import preloaded
import pytest
from conftest import copy_of_the_tree

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "resources/experiments").glob("*.yaml"))


def snakemake(*arguments):
    command = [preloaded.snakemake().python, "-m", "snakemake", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A copy of the project as a clone brings it: no results and no data."""
    project = copy_of_the_tree(tmp_path_factory.mktemp("fresh"))
    assert not project.path("data").exists() and not project.path("results").exists()
    return project


HASHES = {  # settings of those that read data whose hash its user has to give
    "flux1-dev-formats": (f"data_sha256={{mjhq-30k/meta_data.json: '{'0' * 64}'}}",),
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_plans_on_a_fresh_clone_without_a_network(experiment, fresh, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # nobody answers there
    monkeypatch.delenv("no_proxy", raising=False)
    plan = fresh.plan(experiment=experiment, settings=HASHES.get(experiment, ()))
    assert "Write the report" in plan and any(job.startswith("Measure ") for job in plan)
    named = set(re.findall(r"\bdata/[\w./-]+\w", fresh.path(f"resources/experiments/{experiment}.yaml").read_text()))
    planned = {job.split()[1] for job in plan if job.startswith(("Fetch ", "Make data/"))}
    assert {name for name in named if Path(name).suffix} <= planned


def test_text_models_predict_instead_of_drawing(tmp_path):
    plan = snakemake("-n", "--config", "experiment=embedded-text", f"results={tmp_path}")
    assert "Predict: tiny-gpt2, gptq-w3, held-out" in plan and "Calibrate tiny-distilbert" in plan
    assert "Generate images" not in plan and "Draw image_grid" not in plan and "Extract" not in plan
    one = f"{tmp_path}/embedded-text/scores/tiny-gpt2/int8-static/held-out/perplexity.json"
    plan = snakemake("-n", one, "--config", "experiment=embedded-text", f"results={tmp_path}")
    jobs = set(re.findall(r"^Job \d+: (.*)$", plan, flags=re.MULTILINE))
    assert "tiny-distilbert" not in plan
    assert jobs == {
        "Describe model tiny-gpt2",
        "Calibrate tiny-gpt2",
        *(f"Allocate formats: tiny-gpt2, {method}" for method in ("fp32", "int8-static")),
        *(f"Quantize tiny-gpt2, {method}" for method in ("fp32", "int8-static")),
        *(f"Predict: tiny-gpt2, {method}, held-out" for method in ("fp32", "int8-static")),
        "Score perplexity: tiny-gpt2, int8-static, held-out",
    }


def test_the_map_draws_the_rule_graph(tmp_path):
    drawn = snakemake("--rulegraph", "mermaid-js", "--forceall", "--config", f"results={tmp_path}")
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", drawn))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", drawn)}
    block = re.search(r"```mermaid\nflowchart LR\n(.*?)```", (ROOT / "docs/code-map.md").read_text(), flags=re.DOTALL)[
        1
    ]
    shown = set()
    for line in block.strip().splitlines():
        groups = [group.split(" & ") for group in line.strip().split(" --> ")]
        shown |= {(a, b) for left, right in itertools.pairwise(groups) for a in left for b in right}
    assert shown == edges - {("report", "all")}
