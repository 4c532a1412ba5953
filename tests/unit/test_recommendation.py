"""What is recommended: on constructed summaries, and by the words of the page."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import recommend as recommend_rule
import report
from quantwatt.artifacts.errors import DataError
from quantwatt.config import experiment, limits
from quantwatt.config.schemas import ConfigurationError
from quantwatt.report import recommendation, tables
from quantwatt.report.page import widths
from quantwatt.report.page.answer import answers
from quantwatt.report.recommendation import FAILS, HOLDS, UNKNOWN, UNSURE


def method(name, energy=None, time=None, psnr=45.0, size=4.0, memory=50.0, width=0.01, control=(1, 0.97, 1.03), **more):
    """A row of the summary; energy, time: ratios to the baseline, of which intervals reach `width` to both sides."""
    row = dict.fromkeys(tables.SUMMARY_COLUMNS)
    row |= {"model": "m", "method": name, "sampling": "s", "status": "ok", "compute": "real", "device": "CPU",
            "baseline": False, "device_fake": False, "unit": "image", "margin": 0.05, "energy_estimated": False,
            "psnr_db": psnr, "size_mb": size, "memory_mb": memory}  # fmt: skip
    if psnr is not None:
        row |= {"psnr_db_low": psnr - 1, "psnr_db_high": psnr + 1}
    for ratio, cost, verdict, value, unit in (
        (energy, "energy", "verdict", "energy_j", 10.0),
        (time, "latency", "latency_verdict", "latency_s", 1.0),
    ):
        if ratio is not None:
            ends = ratio - width, ratio + width
            row |= dict(zip((f"{cost}_ratio", f"{cost}_ratio_low", f"{cost}_ratio_high"), (ratio, *ends), strict=True))
            row |= {value: unit * ratio, f"{value}_low": unit * ends[0], f"{value}_high": unit * ends[1]}
            row[verdict] = tables.judge(ratio, *ends, control)
            ends = (f"{cost}_control", f"{cost}_control_low", f"{cost}_control_high")
            row |= dict(zip(ends, control or (None,) * 3, strict=True))
    return row | more


BASELINE = method("bf16", psnr=None, size=16.0, memory=80.0) | {
    **{"baseline": True, "verdict": tables.BASELINE, "latency_verdict": tables.BASELINE},
    **{"energy_j": 10.0, "latency_s": 1.0},
}  # fmt: skip


def summary_of(*rows, baseline=BASELINE):
    return pd.DataFrame([baseline, *rows], columns=tables.SUMMARY_COLUMNS).replace({None: np.nan})


def recommended(*rows, wanted=None, baseline=BASELINE):
    [group] = recommendation.recommend(summary_of(*rows, baseline=baseline), wanted)
    return group


def told(*rows, wanted=None, baseline=BASELINE, paying=None):
    """(the page's sentence, the one after it)."""
    summary = summary_of(*rows, baseline=baseline)
    [answer] = answers(summary, recommendation.recommend(summary, wanted), paying)
    [step] = [step for step in answer["steps"] if step["shown"]]
    return ["".join(text for text, _ in step[part]) for part in ("sentence", "others")]


def why(group, name):
    return next(one["why"] for one in group["methods"] if one["method"] == name)


def test_a_damaged_method_is_never_taken_however_cheap():
    rows = method("w2", 0.8, 0.8, psnr=15), method("w4a8", 0.82, 0.82, psnr=41)
    group = recommended(*rows)
    assert (group["take"], group["saves"], group["second"]) == ("w4a8", "energy", None)
    assert why(group, "w2") == "PSNR 15 dB; asked: PSNR of at least 30 dB"
    sentence, others = told(*rows)
    assert sentence.startswith("Take w4a8: it uses 18.0 % [17.0, 19.0] less energy per image than")
    assert "no visible change" in sentence and "Not: w2 (PSNR worse than the limit)." in others


def test_the_luckiest_of_several_that_are_not_told_apart_is_not_taken():
    rows = method("a", 0.80, psnr=35), method("b", 0.81, psnr=50), method("c", 0.815, psnr=42)
    assert recommended(*rows)["take"] == recommended(*reversed(rows))["take"] == "b"
    assert recommended(*rows)["second"] == "c"
    lucky = method("a", 0.78, psnr=35), method("b", 0.80, psnr=50)  # intervals that touch
    assert recommended(*lucky)["take"] == "b"
    apart = method("a", 0.70, psnr=35), method("b", 0.80, psnr=50)
    assert recommended(*apart)["take"] == "a"


def test_of_equal_cost_and_quality_the_smallest_is_taken():
    large, small = method("fewer-steps", 0.40, psnr=36.3, size=14), method("w8a8-fewer-steps", 0.39, psnr=36.2, size=4)
    for rows in ((large, small), (small, large)):
        group = recommended(*rows)
        assert (group["take"], group["second"]) == ("w8a8-fewer-steps", "fewer-steps")


def test_one_that_dominates_is_taken():
    group = recommended(method("good", 0.6, 0.7, psnr=48, size=4), method("bad", 0.9, 0.95, psnr=40, size=8))
    assert group["take"] == "good" and group["second"] == "bad"
    fronts = {one["method"]: one["fronts"] for one in group["methods"]}
    assert fronts["good"] == ["energy", "time", "weights", "memory"] and fronts["bad"] == []


def test_where_nothing_pays_the_answer_says_so():
    group = recommended(method("a", 1.4, 1.5), method("b", 1.2, 1.3))
    assert (group["take"], group["saves"]) == (None, None)
    sentence, others = told(method("a", 1.4, 1.5), method("b", 1.2, 1.3))
    assert sentence.startswith("No measured method saves energy: the cheapest, b, uses 20.0 % [19.0, 21.0] more energy")
    assert "Not: a and b (no cheaper)." in others


def test_a_machine_too_noisy_is_no_reason_against_a_method():
    row = method("a", size=16) | {"verdict": tables.TOO_NOISY, "latency_verdict": tables.TOO_NOISY}
    sentence, others = told(row)
    assert sentence == (
        "No energy could be compared. Nothing to take: the machine was too noisy to tell."
    ) and others.startswith("Not: a (too noisy to tell).")
    assert "make kernels" in others


def test_equal_costs_are_worth_smaller_weights_only():
    rows = method("same-size", 1.0, 1.0, size=16, psnr=60), method("small", 1.0, 1.01, size=4, psnr=45)
    group = recommended(*rows)
    assert (group["take"], group["saves"]) == ("small", "weights")
    sentence, _ = told(*rows)
    assert sentence.startswith("Take small: it saves no energy or time that can be told, but its weights take 4.00 MB")
    sentence, others = told(*rows, method("finer", 1.02, 1.02, size=4.02, psnr=50), method("slow", 1.2, 1.2, size=3))
    assert sentence.startswith("Take finer: ") and sentence.count("4.02 MB instead of 16.0 MB") == 1
    assert "Second: small" in others and "Not: same-size and slow (no cheaper)" in others
    undecided = method("a", 1.0, 1.0, size=4, width=0.4), method("b", 1.0, 1.0, size=8, psnr=60, width=0.4)
    third = method("c", 1.0, 1.0, size=9, psnr=40, width=0.4)
    assert "Not: c (no smaller or better)" in told(*undecided, third)[1]
    assert recommended(rows[0])["take"] is None
    assert told(rows[0])[0].startswith(
        "Quantizing saves no energy: same-size equals the unquantized model (bf16) within 5 % in energy per"
    )


def test_time_is_asked_where_energy_tells_nothing():
    group = recommended(method("a", 0.9, 0.7, width=0.2), method("b", 1.0, 0.6, width=0.03))
    assert (group["take"], group["saves"]) == ("b", "time")


def test_simulated_only():
    row = method("a") | {"status": "simulated", "compute": "simulated", "reason": "no kernel"}
    group = recommended(row)
    assert group["take"] is None and why(group, "a") == "its cost was only simulated here"
    assert told(row)[0].startswith("Nothing was saved or measured here")


def test_where_no_cost_is_asked_for_quality_is_told():
    left_out = {"status": "unmeasured", "compute": None, "reason": "`measuring` leaves it out", "device": np.nan}
    rows = [method(name, psnr=psnr) | left_out for name, psnr in (("a", 40.0), ("b", 44.0))]
    baseline = BASELINE | left_out | {"energy_j": None, "latency_s": None}
    sentence, others = told(*rows, baseline=baseline)
    assert sentence == (
        "No cost was measured, as the experiment asks; the closest in quality, b, with no visible change (PSNR 44.0 dB "
        "[43.0, 45.0]), with weights that would take 4.00 MB instead of 16.0 MB."
    )
    assert others == ""


def test_failures_are_told():
    row = method("a", psnr=None) | {"status": "oom", "reason": "out of memory: 23 GB asked"}
    assert why(recommended(row, method("b", 0.8, 0.8)), "a") == "out of memory: 23 GB asked"
    baseline = BASELINE | {"status": "oom", "reason": "out of memory"}
    assert told(method("b"), baseline=baseline)[0] == (
        "The baseline has no measurement (out of memory), so nothing can be compared."
    )


def test_without_energy_time_counts():
    sentence, _ = told(method("a", time=0.8, energy_reason="rapl is unreadable"))
    assert sentence.startswith(
        "No energy could be read (rapl is unreadable). Take a: it takes 20.0 % [19.0, 21.0] less"
    )


def test_a_ratio_without_an_interval_is_no_reason_to_take_a_method():
    row = method("a", 0.8, 0.8)
    row |= {f"{cost}_ratio_{end}": None for cost in ("energy", "latency") for end in ("low", "high")}
    row |= {"verdict": None, "latency_verdict": None}
    assert recommended(row | {"size_mb": 16})["take"] is None
    assert told(row | {"size_mb": 16})[0].startswith("Quantizing saves no energy: a uses 20.0 % less")


def test_savings_that_the_control_shows_too_come_last():
    wide = (1, 0.7, 1.3)
    doubtful, sure = method("doubtful", 0.8, control=wide), method("sure", 0.9)
    assert recommended(doubtful, sure)["take"] == "sure"
    assert told(doubtful)[1].startswith(
        "Not sure: the ratio of energy, 0.800 [0.790, 0.810], lies within what the unquantized model shows against "
        "itself, 1.00 [0.70, 1.30]. "
    )
    assert told(sure)[1].startswith("Sure: the ratio of energy, 0.900 [0.890, 0.910], lies wholly below what ")
    fairly = method("fairly", 0.93, width=0.06)
    assert told(fairly)[1].startswith("Fairly sure: ") and "in which its interval ends" in told(fairly)[1]


def test_text_models_are_judged_by_their_accuracy():
    def text(name, energy, change, low, high):
        return method(name, energy, psnr=None, unit="inference", accuracy=0.9 + change, accuracy_change=change,
                      accuracy_change_low=low, accuracy_change_high=high)  # fmt: skip

    group = recommended(text("good", 0.9, 0.0, -0.005, 0.005), text("bad", 0.7, -0.1, -0.12, -0.08))
    assert group["take"] == "good" and group["quality"] == "accuracy"
    [limit] = group["limits"].values()
    assert limit == "Accuracy at most 0.01 worse than the unquantized model's"


def test_two_models_and_two_samplings_have_an_answer_each():
    rows = [row | {"model": model, "sampling": sampling} for model in "mn" for sampling in ("s", "t")
            for row in (BASELINE, method("a", 0.8, 0.8))]  # fmt: skip
    summary = pd.DataFrame(rows, columns=tables.SUMMARY_COLUMNS).replace({None: np.nan})
    assert [one["title"] for one in answers(summary)] == ["m · s", "m · t", "n · s", "n · t"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"max_energy_j": 8.2}, HOLDS),
        ({"max_energy_j": 8.0}, UNSURE),
        ({"max_energy_j": 7.0}, FAILS),
        ({"max_latency_s": 0.5}, FAILS),
        ({"max_size_mb": 4}, HOLDS),
        ({"max_memory_mb": 49}, FAILS),
        ({"min_quality": {"psnr": 44}}, HOLDS),
        ({"min_quality": {"psnr": 45}}, UNSURE),
        ({"min_quality": {"psnr": 47}}, FAILS),
        ({"min_quality": {"fid": 3}}, UNKNOWN),
        ({"min_quality": {"kid": {"margin": 0.1}}}, UNKNOWN),
    ],
)
def test_how_sure_a_limit_holds(wanted, found):
    group = recommended(method("a", 0.8, 0.8), wanted=wanted)
    [checks] = [one["limits"] for one in group["methods"]]
    assert checks[next(iter(wanted.get("min_quality", wanted)))] == found
    assert (group["take"] == "a") == (found in (HOLDS, UNSURE))
    assert [one["certain"] for one in group["methods"]] == [found == HOLDS]


def test_limits_that_exclude_all_name_the_nearest():
    group = recommended(method("a", 0.8, psnr=20), method("b", 0.9, psnr=25))
    assert group["take"] is None and group["nearest"] == "b"
    sentence, _ = told(method("a", 0.8, psnr=20), method("b", 0.9, psnr=25))
    assert sentence.startswith("Nothing to take: no measured method holds the limits. Nearest is b")
    assert "visible changes" in sentence


@pytest.mark.parametrize("worse", [0.02, -0.02])
def test_a_margin_is_of_the_worse_side(worse):
    row = method("a", 0.8) | {
        "fid": 5,
        "fid_change": worse,
        "fid_change_low": worse - 0.005,
        "fid_change_high": worse + 0.005,
    }
    group = recommended(row, wanted={"min_quality": {"fid": {"margin": 0.01}}})
    assert (group["take"] is None) == (worse > 0)  # a larger distance is worse


def answer_at(by_limit, limit):
    """The first step that a limit reaches, as the page's script finds it."""
    milder = by_limit["is_margin"]
    return next(
        step for step in by_limit["steps"]
        if step["strictest"] is None or (step["strictest"] <= limit if milder else step["strictest"] >= limit)
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_the_answer_moves_with_the_limit_as_if_it_had_been_asked_for(seed):
    rng = np.random.default_rng(seed)
    rows = [
        method(f"m{i}", *rng.uniform(0.5, 1.3, 2), psnr=rng.uniform(10, 60), size=rng.uniform(1, 20)) for i in range(6)
    ]
    by_limit = recommended(*rows)["by_limit"]
    assert by_limit["limit"] == 30 and not by_limit["is_margin"] and len(by_limit["steps"]) == 7
    keys = ("saves", "take", "second", "nearest", "why")
    for limit in [*rng.uniform(5, 70, 20), *(step["strictest"] for step in by_limit["steps"][:-1])]:
        asked, step = recommended(*rows, wanted={"min_quality": {"psnr": limit}}), answer_at(by_limit, limit)
        assert {key: asked[key] for key in keys} == {key: step[key] for key in keys}
        assert recommendation.reasons(asked["methods"]) == step["reasons"]


def test_the_answer_moves_with_a_margin():
    rows = [
        method(name, cost)
        | {"fid": 5, "fid_change": worse, "fid_change_low": worse - 0.1, "fid_change_high": worse + 0.1}
        for name, cost, worse in (("a", 0.5, 2.0), ("b", 0.7, 1.0), ("c", 0.9, 0.1))
    ]
    by_limit = recommended(*rows, wanted={"min_quality": {"fid": {"margin": 1.5}}})["by_limit"]
    assert [answer_at(by_limit, margin)["take"] for margin in (5, 1.95, 1.85, 0.95, 0.5, -1)] == [*"aabbc", None]


def test_a_figure_without_an_interval_counts_as_exact():
    assert recommendation.held(1.0, math.nan, math.nan, most=1.0) == HOLDS
    assert recommendation.held(1.0, math.nan, math.nan, least=1.1) == FAILS


def test_an_estimate_is_called_one_where_every_row_is_estimated(tmp_path):
    summary = summary_of(method("a", 0.8, 0.8), method("b", 0.9, 0.9)).assign(energy_estimated=True)
    tables.write_table(tmp_path / "summary.csv", summary)
    [answer] = answers(tables.read_table(tmp_path / "summary.csv"))
    [step] = [step for step in answer["steps"] if step["shown"]]
    assert ("estimated", "em") in step["sentence"] and "estimated" in "".join(text for text, _ in step["others"])


def test_the_rule_writes_both_files(tmp_path):
    tables.write_table(tmp_path / "tables/summary.csv", summary_of(method("a", 0.8, 0.8), method("b", 0.7, psnr=12)))
    recommend_rule.main(["--results", str(tmp_path), "--limits", json.dumps({"max_size_mb": 5})])
    [group] = json.loads((tmp_path / "tables/recommendation.json").read_text())
    assert group["take"] == "a" and set(group["limits"]) == {"max_size_mb", "psnr"}
    table = pd.read_csv(tmp_path / "tables/recommendation.csv")
    assert list(table.columns) == list(recommendation.COLUMNS) and list(table["taken"].fillna("")) == ["first", ""]
    assert table["limits"][1] == "max_size_mb: holds; psnr: fails"


def test_unknown_limits_are_refused_by_name(tmp_path):
    assert limits.wrong({"max_joules": 3}).startswith("max_joules: no such limit; one of max_energy_j")
    with pytest.raises(ConfigurationError, match="config.yaml: min_quality: 'sharpness' is no metric; one of psnr"):
        experiment.load_config({"min_quality": {"sharpness": 0.1}})
    with pytest.raises(ConfigurationError, match="min_quality.psnr: the unquantized model has no PSNR of its own"):
        experiment.load_config({"min_quality": {"psnr": {"margin": 1}}})
    with pytest.raises(DataError, match="--limits: max_joules: no such limit"):
        recommend_rule.main(["--results", str(tmp_path), "--limits", '{"max_joules": 3}'])
    with pytest.raises(DataError, match="summary.csv: the file does not exist"):
        recommend_rule.main(["--results", str(tmp_path)])


def block(width, tokens, ratio, low, high, configuration="W8A8"):
    """A row of pipeline.json of `make bench-kernels`, of blocks as fast as in bfloat16."""
    row = {"part": "block", "configuration": configuration, "width": width, "tokens": tokens}
    for key, values in {"ratio_to_fp32": (ratio, low, high), "ratio_to_bf16": (1.0, 0.9, 1.1)}.items():
        row |= {key: values[0], f"{key}_low": values[1], f"{key}_high": values[2]}
    return row


BLOCKS = [
    block(128, 64, 1.2, 1.1, 1.3),  # one that gains, below one that does not, is no limit
    block(256, 64, 1.0, 0.9, 1.1),
    block(512, 64, 1.5, 1.4, 1.6),
    block(1024, 64, 2.0, 1.9, 2.1),
    block(512, 1024, 0.9, 0.8, 1.0),
    block(1024, 1024, 1.1, 0.99, 1.2),
    block(1024, 1024, 9.0, 8.0, 10.0, "float32"),
]


def paying(name="CPU", kind="cpu", dtype="float32", rows=BLOCKS):
    cell = SimpleNamespace(
        method="bf16",
        checkpoint={"model_settings": {"dtype": dtype}},
        measurement={"device": {"name": "CPU", "kind": kind}},
    )
    return widths.by_device([cell], "bf16", {"rows": rows, "machine": {"name": name, "kind": "cpu", "threads": 2}})


def test_the_width_is_the_least_from_which_on_every_block_is_faster():
    assert widths.gains(BLOCKS, "float32") == [(64, 512, (1.5, 1.4, 1.6)), (1024, None, (1.1, 0.99, 1.2))]
    assert widths.gains(BLOCKS, "bfloat16") == [(64, None, (1.0, 0.9, 1.1)), (1024, None, (1.0, 0.9, 1.1))]


@pytest.mark.parametrize(("name", "text"), [("CPU", "on such a processor"), ("Z80", "on another processor, Z80")])
def test_where_nothing_pays_the_answer_says_from_which_width_on_it_would(name, text):
    _, others = told(method("a", 1.4, 1.5), paying=paying(name))
    assert "from a width of 512 on at 64 image tokens (1.50 [1.40, 1.60] times as fast as in float32)" in others
    assert "at no measured width at 1,024 image tokens" in others and text in others
    assert others.endswith("make kernels tells how fast each format is here, by the number of tokens.")
    _, others = told(method("a", 0.8, 0.8), paying=paying(name))
    assert "width" not in others  # a method pays


def test_what_was_measured_on_processors_says_nothing_of_a_gpu():
    assert paying(kind="cuda") == {}


def test_the_answer_reads_the_shipped_measurement():
    [text] = paying(dtype="float16", rows=widths.read(report.BENCHMARKS)["rows"]).values()
    assert "times as fast as in bfloat16" in text
