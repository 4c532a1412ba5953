"""The gate: outcomes on constructed figures, error rates and the planner by simulation, and the script's exit codes."""

import json

import numpy as np
import pandas as pd
import pytest
import test_recommendation as constructed
from scipy import stats

import gate as gate_rule
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment, policy_file
from quantwatt.config.schemas import ConfigurationError, complete
from quantwatt.registry import schema
from quantwatt.report import gate, tables
from quantwatt.report.gate import FAILED, PASSED, UNDECIDED
from tools import gate as gate_tool

TRIALS = 4000


def policy_of(**entries):
    return complete(entries, schema("gate"), "gate.yaml", "")


def judged(*rows, baseline=constructed.BASELINE, **policy):
    return gate.judge(constructed.summary_of(*rows, baseline=baseline), policy_of(**policy))


def scored(column, value, error, n=256, **more):
    """A row whose column has a 95 % interval of this standard error."""
    ends = {f"{column}_low": value - 1.959964 * error, f"{column}_high": value + 1.959964 * error}
    return constructed.method("a", 0.8, 0.8, n_images=n, n_processes=4, **{column: value, **ends}, **more)


@pytest.mark.parametrize(
    ("value", "outcome"), [(0.0, PASSED), (-0.13, PASSED), (-0.15, UNDECIDED), (-0.25, UNDECIDED), (-0.29, FAILED)]
)
def test_a_margin_is_passed_failed_or_undecided(value, outcome):
    [check] = judged(scored("clip_score_change", value, 0.04), quality={"clip-score": {"margin": 0.2}})
    assert check.outcome == outcome and (check.least, check.most) == (-0.2, None)
    assert check.low == pytest.approx(value - 1.645 * 0.04, abs=1e-4) and (check.needed is None) == (
        outcome != UNDECIDED
    )


def test_less_is_better_for_a_distance():
    row = scored("fid_change", 0.1, 0.02)
    assert [check.outcome for check in judged(row, quality={"fid": {"margin": 0.2}})] == [PASSED]
    assert [check.outcome for check in judged(row, quality={"fid": {"margin": 0.05}})] == [FAILED]
    [check] = judged(scored("fid", 3.0, 0.1), quality={"fid": {"limit": 4}})
    assert check.outcome == PASSED and check.most == 4


def test_equivalence_is_two_sided():
    wanted = {"quality": {"fid": {"within": 0.2}}}
    outcomes = [judged(scored("fid_change", value, 0.02), **wanted)[0].outcome for value in (-0.4, -0.1, 0.1, 0.4)]
    assert outcomes == [FAILED, PASSED, PASSED, FAILED]


def test_costs_are_ratios_with_few_degrees_of_freedom():
    row = constructed.method("a", 0.9, 0.9, width=0.05, n_processes=4, n_images=8)
    energy, size = judged(row, cost={"energy": 1.0, "size_mb": 4})
    assert energy.outcome == PASSED and size.outcome == PASSED and size.low == size.high == 4
    assert 0.93 < energy.high < 0.96  # t with three degrees of freedom
    assert [check.outcome for check in judged(row, cost={"energy": 0.8, "size_mb": 3})] == [FAILED, FAILED]
    assert judged(row, cost={"energy": 0.93})[0].outcome == UNDECIDED


def test_what_is_missing_is_undecided_with_its_reason():
    row = constructed.method("a", psnr=None) | {"status": "simulated", "reason": "no kernel"}
    checks = judged(row, quality={"psnr": {"limit": 30}}, cost={"energy": 1})
    assert [(check.outcome, check.note) for check in checks] == [(UNDECIDED, "no kernel")] * 2
    row = constructed.method("a", n_images=8, accuracy=0.9)
    assert judged(row, quality={"accuracy": {"limit": 0.8}})[0].note == "it has no interval"
    assert gate.outcome_of([]) == UNDECIDED


def test_a_policy_may_name_methods():
    rows = constructed.method("a", 0.8, 0.8), constructed.method("b", 0.8, 0.8)
    assert {check.method for check in judged(*rows, cost={"size_mb": 9})} == {"a", "b"}
    assert {check.method for check in judged(*rows, methods=["b"], cost={"size_mb": 9})} == {"b"}
    with pytest.raises(DataError, match="the policy: methods: there is no method 'c'; there are bf16, a, b"):
        judged(*rows, methods=["c"])
    with pytest.raises(DataError, match="quality: 'sharpness' is no metric"):
        judged(*rows, quality={"sharpness": {"limit": 1}})
    with pytest.raises(DataError, match="the baseline has no PSNR of its own"):
        judged(*rows, quality={"psnr": {"margin": 1}})


def test_the_baseline_alone_is_nothing_to_judge():
    with pytest.raises(DataError, match="the policy: methods: 'bf16' is what the others are held against"):
        judged(constructed.method("a", 0.8, 0.8), methods=["bf16"], cost={"size_mb": 9})


def test_of_a_single_process_the_degrees_of_freedom_are_its_pairs():
    """Its interval is over pairs: read as over processes, the error would be a fifth of what it is."""
    one = {"width": 0.05, "n_processes": 1, "n_images": 8}
    [check] = judged(constructed.method("a", 0.9, 0.9, n_pairs=9, n_disturbed=1, **one), cost={"energy": 1.0})
    low, high = np.log(0.85), np.log(0.95)
    error = (high - low) / 2 / stats.t.ppf(0.975, 7)
    assert check.high == pytest.approx(0.9 * np.exp(stats.t.ppf(0.95, 7) * error))


def test_the_baselines_own_noise_is_told():
    row = scored("clip_score_change", 0.0, 0.01)
    bases = [constructed.BASELINE | {"clip_score": 20.0}]
    bases.append(bases[0] | {"sampling": "t", "replicate_of": "s", "clip_score": 20.5})
    summary = pd.DataFrame([*bases, row], columns=tables.SUMMARY_COLUMNS).replace({None: np.nan})
    [check] = gate.judge(summary, policy_of(quality={"clip-score": {"margin": 0.2}}))
    assert check.outcome == PASSED and check.note == "the baseline itself differs by 0.5 between seeds"
    noisy = constructed.method(
        "a", 0.8, 0.8, n_processes=4, energy_control=1, energy_control_low=0.9, energy_control_high=1.2
    )
    assert judged(noisy, cost={"energy": 1.1})[0].note == "the baseline against itself reaches 1.2"


@pytest.mark.parametrize("n_metrics", [1, 3])
def test_a_method_at_its_limits_passes_in_five_of_a_hundred_at_most(n_metrics):
    rng, passed = np.random.default_rng(0), 0
    columns = ["clip_score_change", "fid_change", "kid_change"][:n_metrics]
    worse = [-1, 1, 1]
    policy = policy_of(quality={name: {"margin": 0.2} for name in ("clip-score", "fid", "kid")[:n_metrics]})
    summary, method = constructed.summary_of(), constructed.method("a", n_images=256)
    for _ in range(TRIALS):
        row = dict(method)
        for place, column in enumerate(columns):
            held = 0.2 if place == 0 else 0.0  # one at its limit, the others far from theirs
            value = worse[place] * held + 0.04 * rng.standard_normal()
            row[column], row[f"{column}_low"], row[f"{column}_high"] = value, value - 0.0784, value + 0.0784
        passed += gate.outcome_of(gate.checks_of(row, summary, policy)) == PASSED
    assert 0.035 < passed / TRIALS <= 0.06  # 5 %, and the noise of the simulation


def test_a_method_that_holds_all_limits_fails_in_five_of_a_hundred_at_most():
    rng, failed = np.random.default_rng(1), 0
    columns = ["clip_score_change", "fid_change", "kid_change"]
    policy = policy_of(quality={name: {"margin": 0.2} for name in ("clip-score", "fid", "kid")})
    summary, method = constructed.summary_of(), constructed.method("a", n_images=256)
    for _ in range(TRIALS):
        row = dict(method)
        for sign, column in zip((-1, 1, 1), columns, strict=True):
            value = sign * 0.2 + 0.04 * rng.standard_normal()  # each just holds
            row[column], row[f"{column}_low"], row[f"{column}_high"] = value, value - 0.0784, value + 0.0784
        failed += gate.outcome_of(gate.checks_of(row, summary, policy)) == FAILED
    assert failed / TRIALS <= 0.06


def test_the_planners_number_of_images_decides_with_its_power():
    """256 images leave a check undecided; with the planner's number it is decided in nine of ten trials."""
    [check] = judged(scored("clip_score_change", -0.15, 0.04), quality={"clip-score": {"margin": 0.2}})
    assert check.outcome == UNDECIDED and check.needed > 256
    error, rng, decided = 0.04 * (256 / check.needed) ** 0.5, np.random.default_rng(2), 0
    summary, policy = constructed.summary_of(), policy_of(quality={"clip-score": {"margin": 0.2}})
    for _ in range(TRIALS):
        row = scored("clip_score_change", -0.15 + error * rng.standard_normal(), error, n=check.needed)
        [again] = gate.checks_of(row, summary, policy)
        decided += again.outcome == PASSED
    assert decided / TRIALS == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
    ("policy", "code"),
    [("cost: {size_mb: 5}", 0), ("cost: {size_mb: 3}", 1), ("quality: {fid: {limit: 3}}", 2), ("cost: {joules: 3}", 3)],
)
def test_the_exit_code_says_the_outcome(tmp_path, capsys, policy, code):
    tables.write_table(tmp_path / "tables/summary.csv", constructed.summary_of(constructed.method("a|b", 0.8, 0.8)))
    (tmp_path / "gate.yaml").write_text(policy)
    where = ["--json", f"{tmp_path}/gate.json", "--markdown", f"{tmp_path}/gate.md"]
    assert gate_tool.main(["--results", str(tmp_path), "--policy", f"{tmp_path}/gate.yaml", *where]) == code
    said = capsys.readouterr()
    if code == 3:
        assert "gate.yaml: cost: unknown key 'joules'" in said.err and not (tmp_path / "gate.json").exists()
        return
    assert said.out == (tmp_path / "gate.md").read_text() and "a\\|b" in said.out
    found = json.loads((tmp_path / "gate.json").read_text())
    assert found["outcome"] == (PASSED, FAILED, UNDECIDED)[code] and len(found["checks"]) == 1


def test_without_results_it_says_so(tmp_path, capsys):
    (tmp_path / "gate.yaml").write_text("cost: {size_mb: 3}")
    assert gate_tool.main(["--results", str(tmp_path), "--policy", f"{tmp_path}/gate.yaml"]) == 3
    assert "summary.csv: the file does not exist" in capsys.readouterr().err


# The rule


def test_the_rules_script_succeeds_whatever_the_verdict_is(tmp_path):
    tables.write_table(tmp_path / "tables/summary.csv", constructed.summary_of(constructed.method("a", 0.8, 0.8)))
    for most, outcome in ((5, PASSED), (3, FAILED)):
        gate_rule.main(["--results", str(tmp_path), "--policy", json.dumps({"cost": {"size_mb": most}})])
        found = json.loads((tmp_path / "tables/gate.json").read_text())
        assert found["outcome"] == outcome and found["policy"] == policy_of(cost={"size_mb": most})
        assert f"quantwatt gate: {outcome}" in (tmp_path / "tables/gate.md").read_text()
    with pytest.raises(DataError, match="--policy: methods: there is no method 'b'"):
        gate_rule.main(["--results", str(tmp_path), "--policy", '{"methods": ["b"], "cost": {"size_mb": 1}}'])


def test_the_defaults_of_a_policy_are_the_schemas():
    assert policy_of() == gate.DEFAULTS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "config.yaml: gate: the file '{}' does not exist"),
        ("quality: {psnr: {limt: 3}}", "{}: quality.psnr: unknown key 'limt'; did you mean 'limit'"),
        ("quality: {psnr: {limit: 3, margin: 1}}", "{}: quality.psnr: "),
        ("cost: {energy: -1}", "{}: cost.energy: "),
        ("alpha: 0.9\ncost: {energy: 1}", "{}: alpha: "),
        ("methods: a\ncost: {energy: 1}", "{}: methods: expected a list"),
        ("", "{}: expected a mapping"),
        ("alpha: 0.1", "{}: it holds methods against nothing; write limits under quality or cost"),
    ],
)
def test_a_wrong_policy_is_refused_when_a_run_is_planned(tmp_path, text, words):
    path = tmp_path / "gate.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        experiment.load_config({"gate": str(path)})
    assert str(caught.value).startswith(words.format(path)) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("models: [sd]\ncost: {energy: 1}", "models: there is no model 'sd'; there are tiny-sd3."),
        ("samplings: [s]\ncost: {energy: 1}", "samplings: there is no sampling 's'; there are steps-4."),
        ("methods: [float32]\ncost: {energy: 1}", "methods: 'float32' is what the others are held against"),
        ("quality: {sharpness: {limit: 1}}", "quality: 'sharpness' is no metric; one of psnr"),
        ("quality: {accuracy: {limit: 1}}", "quality: accuracy is not scored; one of fid"),
    ],
)
def test_a_policy_that_names_what_the_experiment_lacks(tmp_path, policy, words):
    path = tmp_path / "gate.yaml"
    path.write_text(policy)
    config = experiment.load_config({"experiment": "smoke", "gate": str(path)})
    with pytest.raises(ConfigurationError) as caught:
        policy_file.check_policy(config, experiment.load_experiment("smoke"))
    assert str(caught.value).startswith(f"{path}: {words}")
    policy_file.check_policy(experiment.load_config({}), experiment.load_experiment("smoke"))


def test_wrong_words_end_with_3(capsys):
    with pytest.raises(SystemExit) as ended:
        gate_tool.main(["--polcy", "x"])
    assert ended.value.code == 3 and "required: --results, --policy" in capsys.readouterr().err
