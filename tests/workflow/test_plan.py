"""Every experiment plans, and README draws the graph that Snakemake runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWN_TEXTS = {"distilbert-energy", "gpt2-energy"}  # refused until their texts are there: tests/unit/test_experiment.py
EXPERIMENTS = sorted({path.stem for path in (ROOT / "resources/experiments").glob("*.yaml")} - OWN_TEXTS)


def snakemake(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_dry_run(experiment, tmp_path):
    plan = snakemake("-n", "--forceall", "--config", f"experiment={experiment}", f"results={tmp_path}")
    assert "Write the report" in plan and "Measure " in plan


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


def test_readme_draws_the_rule_graph(tmp_path):
    drawn = snakemake("--rulegraph", "mermaid-js", "--forceall", "--config", f"results={tmp_path}")
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", drawn))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(id\d+) --> (id\d+)", drawn)}
    block = re.search(r"```mermaid\nflowchart LR\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    readme = set()
    for line in block.strip().splitlines():
        groups = [group.split(" & ") for group in line.strip().split(" --> ")]
        readme |= {(a, b) for left, right in zip(groups, groups[1:], strict=False) for a in left for b in right}
    assert readme == edges - {("report", "all")}


def test_readme_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target
