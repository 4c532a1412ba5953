"""The gate and the comparison with an earlier result: rules that are made where their key of config.yaml is set."""

import json
import re
import shutil

import pytest

GATE, COMPARE = "Hold the methods against the policy", "Compare with earlier"
POLICY = "methods: [rtn-w8a8]\nquality: {psnr: {limit: 30}}\ncost: {size_mb: 100}\n"


@pytest.fixture
def asked(project):
    """The project with a policy and a copy of its result; their words for --config."""
    project.path("policy.yaml").write_text(POLICY)
    (project.path("earlier/tables")).mkdir(parents=True)
    shutil.copy(project.path("results/smoke/tables/summary.csv"), project.path("earlier/tables"))
    yield "gate=policy.yaml", "baseline_results=earlier"
    for name in ("gate", "comparison"):
        for suffix in ("json", "md"):
            project.path(f"results/smoke/tables/{name}.{suffix}").unlink(missing_ok=True)


def plan(project, *words, target="all"):
    """Messages of the jobs that a dry run with these words of --config plans."""
    done = project.snakemake(*words, "-n", target)
    assert done.returncode == 0, done.stdout
    return set(re.findall(r"^Job \d+: (.*)$", done.stdout, flags=re.MULTILINE))


def test_a_verdict_and_a_comparison_are_made_and_nothing_else(project, asked):
    assert plan(project, *asked) == {GATE, COMPARE}
    done = project.snakemake(*asked, "--cores", "1")
    assert done.returncode == 0, done.stdout
    verdict = json.loads(project.path("results/smoke/tables/gate.json").read_text())
    assert verdict["outcome"] == "passed" and {check["method"] for check in verdict["checks"]} == {"rtn-w8a8"}
    found = json.loads(project.path("results/smoke/tables/comparison.json").read_text())
    assert found["earlier"] == "earlier" and found["outcome"] in ("no regression", "undecided")
    assert "quantwatt comparison" in project.path("results/smoke/tables/comparison.md").read_text()
    # Nothing is left; of a policy only what it says counts, of a table its content.
    assert plan(project, *asked) == set()
    project.path("policy.yaml").write_text(f"# a comment\nalpha: 0.05\n{POLICY}")
    project.path("earlier/tables/summary.csv").touch()
    assert plan(project, *asked) == set()
    project.path("policy.yaml").write_text(POLICY.replace("limit: 30", "limit: 99"))
    assert plan(project, *asked) == {GATE}
    done = project.snakemake(*asked, "--cores", "1")  # a verdict is no failure of the run
    assert done.returncode == 0, done.stdout
    assert json.loads(project.path("results/smoke/tables/gate.json").read_text())["outcome"] == "failed"
    table = project.path("earlier/tables/summary.csv")
    table.write_text(table.read_text().replace("rtn-w8a8", "rtn-w8a8-of-may"))
    assert plan(project, *asked) == {COMPARE}


@pytest.mark.parametrize("target", ["gate", "compare", "results/smoke/tables/gate.json"])
def test_a_single_target_is_made_or_says_which_key_it_needs(project, asked, target):
    rule, word = ("compare", asked[1]) if target == "compare" else ("gate", asked[0])
    assert plan(project, word, target=target) == {COMPARE if target == "compare" else GATE}
    done = project.snakemake("-n", target)
    assert done.returncode == 1 and "Traceback" not in done.stdout
    sentence = done.stdout.splitlines()[-1]
    assert sentence.startswith(f"{rule}: no ") and f"add --config {word.partition('=')[0]}=" in sentence


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("gate=polici.yaml", "--config: gate: the file 'polici.yaml' does not exist."),
        ("baseline_results=nowhere", "--config: baseline_results: 'nowhere' has no tables/summary.csv"),
        ("baseline_results=results/smoke", "--config: baseline_results: 'results/smoke' is where this run writes"),
    ],
)
def test_a_wrong_key_is_one_sentence(project, word, sentence):
    done = project.snakemake(word, "-n")
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith(sentence), done.stdout


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ("cost: {joules: 1}", "policy.yaml: cost: unknown key 'joules'"),
        ("methods: [gptq]\ncost: {size_mb: 1}", "policy.yaml: methods: there is no method 'gptq'; there are float32"),
        ("quality: {accuracy: {limit: 1}}", "policy.yaml: quality: accuracy is not scored; one of fid, kid"),
        ("quality: {psnr: {margin: 1}}", "policy.yaml: quality.psnr: the baseline has no PSNR of its own"),
        ("alpha: 0.1", "policy.yaml: it holds methods against nothing"),
    ],
)
def test_a_wrong_policy_is_one_sentence(project, asked, policy, sentence):
    project.path("policy.yaml").write_text(policy)
    done = project.snakemake(asked[0], "-n")
    assert done.returncode == 1 and done.stdout.splitlines()[-1].startswith(sentence), done.stdout
    assert "Traceback" not in done.stdout
