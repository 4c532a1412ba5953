"""Two methods against each other: in pairs of images, and by two independent ratios; coverage by simulation."""

import itertools
import math

import numpy as np
import pytest
import synthetic_results as synthetic
from scipy import stats

import tables as tables_rule
from quantwatt import intervals
from quantwatt.config import metric_entries
from quantwatt.report import independent, method_pairs, tables
from quantwatt.report.cells import Cell
from quantwatt.report.tables import BETTER, EQUAL, UNCONTROLLED, UNDECIDED, WITHIN_CONTROL, WORSE
from quantwatt.score.metrics import accuracy, perplexity

CPU = {"name": "CPU", "uuid_hash": None}
N = 64


def score(values, weights=None, logs=False):
    found = {"status": "ok", "values": np.asarray(values, float), "log_values": logs}
    return found | {"weights": weights, "value": float(np.mean(values))}


def measured(name, ratio=None, width=0.01, device=CPU, processes=6, **more):
    """A measurement whose ratios' intervals reach `width` to both sides on the logarithmic scale."""
    ratios = None
    if ratio is not None:
        ratios = {"value": ratio, "low": ratio * math.exp(-width), "high": ratio * math.exp(width)}
    return {"method": name, "status": "ok", "device": device, "n_processes": processes,
            "ratio": {"energy_j": ratios, "latency_s": ratios}, **more}  # fmt: skip


def cell(name, ratio=None, sampling="s", n=N, measurement=None, **scores):
    images = {"status": "ok", "n_images": n}
    return Cell("m", name, sampling, {}, images, measurement or measured(name, ratio), scores)


BASE = cell("bf16", 1.0, measurement=measured("bf16", 1.0, width=0.03))


def table(*cells, base=BASE, margin=0.05):
    return method_pairs.pairs_table([base, *cells], "bf16", margin)


def pair(*cells, base=BASE):
    [(_, row)] = table(*cells, base=base).iterrows()
    return row


def interval(row, column):
    return [row[f"{column}{end}"] for end in ("", "_low", "_high")]


# Quality


def test_the_difference_of_a_mean_is_the_bootstrap_of_the_pairs_differences():
    rng = np.random.default_rng(0)
    hard = rng.normal(35, 5, N)
    one, other = hard + rng.normal(0.4, 0.5, N), hard
    row = pair(cell("a", psnr=score(one)), cell("b", psnr=score(other)))
    assert interval(row, "psnr_db_difference") == pytest.approx(intervals.bootstrap_mean(one - other), rel=1e-9)
    assert row["psnr_db_verdict"] == BETTER and (row["method"], row["other"]) == ("a", "b")
    assert row["psnr_db_difference_high"] - row["psnr_db_difference_low"] < 0.5 < hard.std() / N**0.5
    row = pair(cell("b", psnr=score(other)), cell("a", psnr=score(one)))
    assert row["psnr_db_verdict"] == WORSE


def test_texts_are_compared_as_by_the_metrics_own_change():
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 30, N)
    nll = [tokens * rng.uniform(1, 3, N) for _ in range(2)]
    right = [rng.binomial(tokens, 0.6) for _ in range(2)]
    sets = [
        [{"nll": nll[i][k], "tokens": int(tokens[k]), "correct": int(right[i][k])} for k in range(N)] for i in range(2)
    ]
    cells = [
        cell(name, perplexity=score(nll[i] / tokens, tokens, logs=True), accuracy=score(right[i] / tokens, tokens))
        for i, name in enumerate("ab")
    ]
    row = pair(*cells)
    for metric, module in (("perplexity", perplexity), ("accuracy", accuracy)):
        assert interval(row, f"{metric}_difference") == pytest.approx(module.change(*sets)[:3], rel=1e-9)


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"), [(0, 0, EQUAL), (0, 1, UNDECIDED), (-1, 0.1, WORSE), (0.5, 0, BETTER)]
)
def test_verdicts_on_a_difference(shift, spread, verdict):
    values = np.random.default_rng(2).normal(30, 1, N)
    moved = values + shift + spread * np.resize([-1, 1], N)
    assert pair(cell("a", psnr=score(moved)), cell("b", psnr=score(values)))["psnr_db_verdict"] == verdict


def test_what_is_acceptable_is_equal():
    metric = metric_entries.shown()["accuracy"]
    assert metric.acceptable == 0.01
    found = [method_pairs.judged((x, x - 0.004, x + 0.004), metric) for x in (0.002, 0.005, 0.008, 0.03, -0.03)]
    assert found == [EQUAL, EQUAL, BETTER, BETTER, WORSE]
    lower = metric_entries.shown()["perplexity"]
    assert method_pairs.judged((3.0, 2.0, 4.0), lower) == WORSE
    assert method_pairs.judged((3.0, math.nan, math.nan), lower) is None


def test_one_image_has_a_difference_and_no_verdict():
    row = pair(cell("a", 0.9, n=1, psnr=score([40.0])), cell("b", 0.9, n=1, psnr=score([38.0])))
    assert row["psnr_db_difference"] == 2 and math.isnan(row["psnr_db_difference_low"])
    assert row["psnr_db_verdict"] is None or math.isnan(row["psnr_db_verdict"])


@pytest.mark.filterwarnings("error")
def test_a_broken_models_perplexity_has_a_difference_without_an_interval():
    broken = score(np.linspace(500, 900, 5), logs=True)
    row = pair(cell("a", n=5, perplexity=broken), cell("b", n=5, perplexity=score(np.ones(5), logs=True)))
    assert row["perplexity_difference"] > 1e300 and math.isnan(row["perplexity_difference_low"])


def test_distances_and_failed_cells_have_no_difference():
    without = {"status": "ok", "value": 3.0, "values": None}
    failed = {"status": "oom", "value": None, "values": None}
    cells = [cell("a", fid=without, psnr=score(np.ones(N))), cell("b", fid=without, psnr=failed), cell("c")]
    assert table(*cells).empty  # nothing of any pair can be compared
    scored = [metric for name, metric in metric_entries.shown().items() if any(name in one.scores for one in cells)]
    assert list(table(*cells).columns) == method_pairs.columns(scored) and scored


def test_many_images_are_resampled_less_often():
    values = np.random.default_rng(3).normal(0, 1, (50_000, 2))
    found = method_pairs.differences([cell(str(k), psnr=score(values[:, k])) for k in range(2)])
    low, high = (found[0, 1][f"psnr_db_difference_{end}"] for end in ("low", "high"))
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(2 / 50_000), rel=0.1)


# Cost


def test_a_ratio_of_two_methods_is_that_of_their_ratios():
    row = pair(cell("a", 0.6), cell("b", 0.8))
    assert row["energy_ratio"] == row["latency_ratio"] == pytest.approx(0.75)
    error = 0.01 / stats.t.ppf(0.975, 5)
    reach = stats.t.ppf(0.975, 10) * math.sqrt(2) * error  # Welch: equal variances, 5 + 5 degrees of freedom
    assert interval(row, "energy_ratio") == pytest.approx([0.75, 0.75 * math.exp(-reach), 0.75 * math.exp(reach)])
    assert row["energy_verdict"] == row["latency_verdict"] == BETTER and row["cost_reason"] is None


@pytest.mark.parametrize(
    ("ratio", "width", "control", "verdict"),
    [
        (0.80, 0.01, 0.03, BETTER), (1.25, 0.01, 0.03, WORSE), (1.0, 0.01, 0.03, EQUAL), (1.0, 0.2, 0.03, UNDECIDED),
        (0.90, 0.01, 0.09, BETTER + WITHIN_CONTROL), (0.90, 0.01, None, BETTER + UNCONTROLLED),
        (1.0, 2.0, 0.03, tables.TOO_NOISY),
    ],
)  # fmt: skip
def test_verdicts_on_a_ratio(ratio, width, control, verdict):
    """Within the control: exp(0.09 sqrt 2) is 1.136, and 1 / 0.9 is nearer to 1, though not nearer than exp(0.09)."""
    base = cell("bf16", measurement=measured("bf16", 1.0 if control else None, width=control or 0))
    cells = [cell(name, measurement=measured(name, own, width=width)) for name, own in (("a", ratio), ("b", 1.0))]
    row = pair(*cells, base=base)
    assert row["energy_verdict"] == verdict and math.isnan(row["energy_ratio"]) == (verdict == tables.TOO_NOISY)


def test_costs_of_two_devices_are_not_compared():
    other = measured("b", 0.8, device={"name": "GPU", "uuid_hash": "x"})
    cells = cell("a", 0.8, psnr=score(np.ones(N))), cell("b", measurement=other, psnr=score(np.ones(N)))
    row = pair(*cells)
    assert math.isnan(row["energy_ratio"]) and row["cost_reason"] == method_pairs.OTHER_DEVICE
    assert row["psnr_db_verdict"] == EQUAL and row["device"] is None


def test_why_a_cost_is_missing():
    scored = {"psnr": score(np.ones(N))}
    simulated = measured("b") | {"status": "simulated", "reason": "no kernel"}
    assert pair(cell("a", 0.8, **scored), cell("b", measurement=simulated, **scored))["cost_reason"] == "no kernel"
    unread = measured("b", 0.8, energy_reason="no counter")
    unread["ratio"]["energy_j"] = None
    row = pair(cell("a", 0.8, **scored), cell("b", measurement=unread, **scored))
    assert row["latency_ratio"] == pytest.approx(1) and row["cost_reason"] == "no counter"


def test_every_pair_of_every_sampling_and_no_baseline():
    cells = [cell(name, 0.8, sampling=sampling) for sampling in "st" for name in "abcd"]
    base = [cell("bf16", 1.0, sampling=sampling) for sampling in "st"]
    found = method_pairs.pairs_table([*base, *cells], "bf16")
    asked = [(sampling, *pair) for sampling in "st" for pair in itertools.combinations("abcd", 2)]
    assert [tuple(row) for row in found[["sampling", "method", "other"]].itertuples(index=False)] == asked


def test_more_methods_than_a_table_of_pairs_holds_are_left_out_with_a_word(monkeypatch):
    cells = [cell(name, 0.8, sampling=sampling) for sampling, names in (("s", "abcd"), ("t", "ab")) for name in names]
    monkeypatch.setattr(method_pairs, "MOST_METHODS", 3)
    assert set(method_pairs.pairs_table(cells, "bf16")["sampling"]) == {"t"}
    [sentence] = method_pairs.left_out(cells)
    assert "m, s: 4 methods are too many" in sentence and "at most 3" in sentence


def test_the_degrees_of_freedom_of_a_ratio():
    assert independent.degrees_of(8) == 7 and independent.degrees_of(8, 40, 3) == 7
    assert independent.degrees_of(1, 20, 4) == 15 and independent.degrees_of(1, 4, 4) == 3
    assert independent.degrees_of(None) == independent.degrees_of(math.nan, math.nan, math.nan) == 1


def test_the_tables_rule_writes_every_pair(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    tables_rule.main(["--results", str(tmp_path), "--grid", synthetic.write_grid(tmp_path, cells)])
    found = tables.read_table(tmp_path / "tables/pairs.csv").set_index(["method", "other"])
    assert list(found.reset_index().columns[:2]) == ["method", "other"] and len(found) == 9 * 8 / 2
    row = found.loc[("gptq-w4a8", "nf4")]
    assert row["psnr_db_difference"] == pytest.approx(33.9 - 32.6) and row["psnr_db_verdict"] == BETTER
    assert row["cost_reason"].startswith("no kernel computes gptq-w4a8")
    row = found.loc[("rtn-w8a8", "nf4")]
    assert row["energy_ratio"] == pytest.approx(0.88 / 1.24, rel=1e-4) and row["energy_verdict"] == BETTER


# Simulation


@pytest.mark.parametrize(("processes", "spreads"), [((8, 8), (1, 1)), ((4, 8), (3, 1)), ((4, 4), (1, 5))])
def test_the_ratio_of_two_methods_covers_the_truth(processes, spreads):
    rng, trials, held = np.random.default_rng(4), 4000, 0
    truth = 0.7 / 0.9
    sides = []
    for n, spread, own in zip(processes, spreads, (0.7, 0.9), strict=True):
        logs = math.log(own) + 0.02 * spread * rng.standard_normal((trials, n))
        reach = stats.t.ppf(0.975, n - 1) * logs.std(axis=1, ddof=1) / math.sqrt(n)
        sides.append([np.exp(logs.mean(axis=1) + sign * reach) for sign in (0, -1, 1)])
    _, low, high = independent.ratio(*map(tuple, sides), processes[0] - 1, processes[1] - 1)
    held = ((low <= truth) & (truth <= high)).mean()
    assert 0.94 <= held <= 0.972  # the noise of the simulation is 0.0035; Welch's degrees are on the safe side


@pytest.mark.parametrize("spread", [0.02, 0.05, 0.06, 0.1])
def test_the_ratio_covers_the_truth_where_measuring_ends_at_a_width(spread):
    """Each method stops from the fourth process on at a half-width of 5 %, with intervals of the level for looks."""
    rng, trials = np.random.default_rng(5), 10_000
    sides, degrees = [], []
    for _ in range(2):
        logs, level = spread * rng.standard_normal((trials, 8)), intervals.looks_level(8)
        found = np.full((4, trials), np.nan)  # value, low, high, degrees of freedom
        for n in range(4, 9):
            mean = logs[:, :n].mean(axis=1)
            reach = stats.t.ppf((1 + level) / 2, n - 1) * logs[:, :n].std(axis=1, ddof=1) / math.sqrt(n)
            ends = np.isnan(found[0]) & ((reach <= 0.05) | (n == 8))
            found[:, ends] = np.stack([mean, mean - reach, mean + reach, np.full(trials, n - 1)])[:, ends]
        sides.append(tuple(found[:3]))
        degrees.append(found[3])
    _, low, high = independent.difference(*sides, *degrees)
    assert 0.935 <= ((low <= 0) & (high >= 0)).mean() <= 0.985


def test_methods_that_are_alike_are_told_apart_in_five_of_a_hundred():
    rng, trials, told = np.random.default_rng(6), 400, 0
    metric = metric_entries.shown()["psnr"]
    for trial in range(trials):
        hard = rng.normal(35, 5, N)
        cells = [cell(name, psnr=score(hard + rng.normal(0, 1, N))) for name in "ab"]
        found = method_pairs.differences(cells, resamples=500, seed=trial)[0, 1]
        told += found[f"{metric.column}_verdict"] in (BETTER, WORSE)
    assert 0.02 <= told / trials <= 0.085
