"""Two results, and two methods of one: constructed cases, what differs, exit codes, and error rates by simulation."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import synthetic_results as synthetic

import compare as compare_rule
import tables as tables_rule
from quantwatt.artifacts import feature_files
from quantwatt.artifacts.errors import DataError
from quantwatt.report import method_pairs, tables
from quantwatt.report.compare import change, comparison, result_folder, two_methods
from quantwatt.report.compare.change import GAINED, LOST, NOT_COMPARED, Change
from quantwatt.report.compare.comparison import NO_REGRESSION, REGRESSION, UNDECIDED
from quantwatt.report.tables import BETTER, EQUAL, WORSE
from quantwatt.score.metrics import kid
from tools import compare as compare_tool

METHODS = {name: synthetic.METHODS[name] for name in ("bf16", "rtn-w8a8", "rtn-w4a16", "nf4")}
ROW = ("tiny-sd3", "steps-20", "rtn-w8a8")


def write(folder, methods=METHODS, **settings):
    """A finished result; the folder."""
    cells = synthetic.write_tree(folder, methods=methods, with_images=False, **settings)
    tables_rule.main(["--results", str(folder), "--grid", synthetic.write_grid(folder, cells)])
    return folder


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    return write(tmp_path_factory.mktemp("results") / "earlier")


@pytest.fixture
def now(earlier, tmp_path):
    """A copy, for changes."""
    return shutil.copytree(earlier, tmp_path / "now")


def edit(folder, file, function, method="rtn-w8a8"):
    """Change one JSON file of a cell."""
    [path] = folder.glob(f"*/tiny-sd3/{method}/steps-20/{file}.json")
    record = json.loads(path.read_text())
    function(record)
    path.write_text(json.dumps(record))


def edit_summary(folder, **columns):
    """Change columns of the row of rtn-w8a8."""
    table = pd.read_csv(folder / "tables/summary.csv")
    for column, value in columns.items():
        table[column] = table[column].astype(object) if column in table else pd.Series(dtype=object)
        table.loc[table["method"] == "rtn-w8a8", column] = value
    table.to_csv(folder / "tables/summary.csv", index=False)


def compared(earlier, now, **options):
    return comparison.compare(result_folder.read(earlier), result_folder.read(now), **options)


def of(found, figure, method="rtn-w8a8"):
    [one] = [one for one in found.changes if (one.method, one.figure) == (method, figure)]
    return one


# Two results


def test_equal_results_differ_in_nothing(earlier, now):
    found = compared(earlier, now)
    assert found.outcome == NO_REGRESSION and not found.differences and not found.refused
    assert not found.only_earlier and not found.only_now
    assert {one.verdict for one in found.changes} <= {EQUAL, tables.UNDECIDED}
    assert of(found, "psnr").verdict == of(found, "time ratio").verdict == of(found, "size").verdict == EQUAL
    assert of(found, "psnr").low == of(found, "psnr").high == 0  # the same images


def test_a_worse_image_is_a_regression_and_comes_first(earlier, now):
    edit(now, "psnr", lambda score: score.update(values=[value - 0.4 for value in score["values"]]))
    edit_summary(now, psnr_db=40.8)
    found = compared(earlier, now)
    first = found.changes[0]
    assert found.outcome == REGRESSION and (first.method, first.figure, first.verdict) == ("rtn-w8a8", "psnr", WORSE)
    assert first.regression and first.value == pytest.approx(-0.4) and sum(one.regression for one in found.changes) == 1
    tolerant = compared(earlier, now, tolerated={"psnr": 0.5})
    assert tolerant.outcome == NO_REGRESSION and of(tolerant, "psnr").verdict == WORSE
    back = compared(now, earlier)
    assert back.outcome == NO_REGRESSION and of(back, "psnr").verdict == BETTER


def test_a_slower_method_is_a_regression_beyond_the_margin(earlier, tmp_path):
    slower = compared(earlier, write(tmp_path / "slower", energy_factor=1.2))
    assert slower.outcome == REGRESSION
    assert {(one.method, one.figure) for one in slower.changes if one.regression} == {
        (method, figure) for method in ("rtn-w8a8", "nf4") for figure in ("energy ratio", "time ratio")
    }
    one = of(slower, "time ratio")
    assert one.value == pytest.approx(1.2) and one.low < 1.2 < one.high and one.is_ratio
    assert of(slower, "time").verdict == WORSE and not of(slower, "time").regression  # seconds do not count
    a_little = compared(earlier, write(tmp_path / "little", energy_factor=1.03))
    assert a_little.outcome == NO_REGRESSION and of(a_little, "time ratio").verdict == EQUAL


def test_seconds_count_where_asked(earlier, now):
    edit_summary(now, latency_s=0.06, latency_s_low=0.0595, latency_s_high=0.0605)
    assert compared(earlier, now).outcome == NO_REGRESSION
    found = compared(earlier, now, absolute=True)
    assert found.outcome == REGRESSION and of(found, "time").regression


def test_cost_of_another_device_is_refused_and_quality_compared(earlier, tmp_path):
    found = compared(earlier, write(tmp_path / "gpu", device=synthetic.GPU, meter="nvml", energy_factor=3.0))
    assert found.outcome == UNDECIDED
    [(what, why, keys)] = found.refused
    assert what == "cost" and why == "measured on Example CPU, 8 cores, now on Example GPU" and ROW in keys
    assert {one.figure for one in found.changes} >= {"psnr", "fid", "size"}
    assert not {"time", "energy", "time ratio", "energy ratio", "memory"} & {one.figure for one in found.changes}
    facts = {one.fact: (one.earlier, one.now) for one in found.differences}
    assert facts["device: name"] == ("Example CPU, 8 cores", "Example GPU") and facts["measured: meter"][1] == "nvml"


def test_energy_of_another_meter_is_refused_and_time_compared(earlier, tmp_path):
    found = compared(earlier, write(tmp_path / "rapl", meter="rapl"))
    assert [(what, why) for what, why, _ in found.refused] == [("energy", "read by estimate, now by rapl")]
    figures = {one.figure for one in found.changes}
    assert {"time", "time ratio", "memory"} <= figures and not {"energy", "energy ratio"} & figures


def test_batches_and_watts_that_differ_are_refused(earlier, now):
    edit(now, "measurement", lambda record: record.update(images_per_batch=8))
    edit(now, "measurement", lambda record: record["measuring"].update(idle_w=20, full_w=90), method="nf4")
    refused = {why: (what, keys) for what, why, keys in compared(earlier, now).refused}
    assert refused["measured in batches of 4, now of 8"] == ("cost", [ROW])
    what, keys = refused["estimated between unknown and unknown, now between 20 W and 90 W"]
    assert what == "energy" and keys == [("tiny-sd3", "steps-20", "nf4")]


def test_another_baseline_is_another_ratio(earlier, tmp_path):
    cells = synthetic.write_tree(tmp_path / "now", methods=METHODS, with_images=False)
    grid = synthetic.write_grid(tmp_path / "now", cells, baseline="nf4")
    tables_rule.main(["--results", str(tmp_path / "now"), "--grid", grid])
    found = compared(earlier, tmp_path / "now")
    assert ("ratio", "to bf16, now to nf4") in [(what, why) for what, why, _ in found.refused]
    assert of(found, "psnr").verdict == NOT_COMPARED and of(found, "psnr").note == "held against bf16, now against nf4"


def test_other_prompts_are_not_compared_in_pairs(earlier, now):
    paired = compared(earlier, now)
    edit(now, "manifest", lambda record: record.update(prompts_sha256="f" * 64))
    alone = compared(earlier, now)
    assert of(paired, "psnr").high == 0 < of(alone, "psnr").high
    assert [(one.fact, one.rows) for one in alone.differences] == [("prompts or texts", (ROW,))]
    edit(now, "manifest", lambda record: record.update(prompts_sha256=None))
    assert of(compared(earlier, now), "psnr").high > 0


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("features", "inception", "another features: judge, now inception"),
        ("reference_sha256", "b" * 64, f"another reference: {'a' * 40}, now {'b' * 40}"),
    ],
)
def test_a_metric_of_other_features_is_another_metric(earlier, tmp_path, key, value, why):
    sides = [shutil.copytree(earlier, tmp_path / name) for name in ("one", "other")]
    for side, held in zip(sides, ("a" * 64 if key == "reference_sha256" else "judge", value), strict=True):
        edit(side, "fid", lambda score, held=held: score.update({key: held}))
    found = compared(*sides)
    assert (of(found, "fid").verdict, of(found, "fid").note) == (NOT_COMPARED, why) and found.outcome == UNDECIDED
    # What differs for the metrics that compare with the baseline's images is what the baseline drew.
    for side, held in zip(sides, "ab", strict=True):
        edit(side, "psnr", lambda score, held=held: score.update(reference_sha256=held))
    assert of(compared(*sides), "psnr").verdict == EQUAL


def test_fid_of_more_images_is_not_compared(earlier, now):
    edit_summary(now, n_images=24)
    assert of(compared(earlier, now), "fid").note == "it depends on the number of images: 12, now 24"


def test_rows_of_one_result_alone_are_listed(earlier, tmp_path):
    fewer = write(tmp_path / "fewer", methods={name: METHODS[name] for name in ("bf16", "rtn-w8a8")})
    found = compared(earlier, fewer)
    assert [key[2] for key in found.only_earlier] == ["rtn-w4a16", "nf4"] and found.outcome == UNDECIDED
    assert [key[2] for key in compared(fewer, earlier).only_now] == ["rtn-w4a16", "nf4"]
    assert compared(fewer, earlier).outcome == NO_REGRESSION  # nothing of the earlier one is missing


def test_a_method_that_fails_now_is_a_regression(earlier, tmp_path):
    broken = write(tmp_path / "broken", failures={"nf4": ("oom", "out of memory")})
    found = compared(earlier, broken)
    first = found.changes[0]
    assert (first.method, first.figure, first.verdict, first.regression) == ("nf4", "status", LOST, True)
    assert first.note == "was ok, is oom: out of memory" and found.outcome == REGRESSION
    mended = compared(broken, earlier)
    assert of(mended, "status", "nf4").verdict == GAINED and mended.outcome == NO_REGRESSION
    simulated = compared(earlier, write(tmp_path / "simulated", real=["bf16", "rtn-w8a8"]))
    assert of(simulated, "status", "nf4").note.startswith("was ok, is simulated: no kernel computes nf4")


def test_energy_that_is_not_read_any_more_is_lost(earlier, tmp_path):
    found = compared(earlier, write(tmp_path / "none", energy_reason="no counter"))
    assert of(found, "energy").verdict == LOST and of(found, "energy").note == "no counter"
    assert of(found, "time ratio").verdict == EQUAL and found.outcome == UNDECIDED


def test_a_figure_without_an_interval_is_told_only_where_it_is_the_same(earlier, now):
    none = {"psnr_db_low": math.nan, "psnr_db_high": math.nan}
    edit(now, "psnr", lambda score: score.update(values=None))
    edit_summary(now, **none)
    assert of(compared(earlier, now), "psnr").verdict == EQUAL
    edit_summary(now, psnr_db=30)
    found = compared(earlier, now)
    assert of(found, "psnr").verdict == NOT_COMPARED and of(found, "psnr").note == "it has no interval"
    assert found.outcome == UNDECIDED


def test_larger_weights_are_a_regression_on_any_device(earlier, tmp_path):
    larger = METHODS | {"nf4": METHODS["nf4"]._replace(size_mb=2.4)}
    found = compared(earlier, write(tmp_path / "larger", methods=larger, device=synthetic.GPU))
    assert found.outcome == REGRESSION and of(found, "size", "nf4").regression
    assert of(found, "size", "nf4").value == pytest.approx(2.4 / 2.21)


def test_texts_are_compared_by_their_own_values(tmp_path):
    """Perplexity has logarithms and weights; the row of the summary alone would not tell a change of 1 %."""
    rng, sides = np.random.default_rng(0), []
    nats, tokens = rng.normal(3, 0.5, 40), rng.integers(5, 90, 40)
    for name, shift in (("one", 0.0), ("other", 0.01)):
        folder = write(tmp_path / name)
        value = math.exp(np.average(nats + shift, weights=tokens))
        score = {"status": "ok", "metric": "perplexity", "value": value, "values": list(nats + shift),
                 "weights": tokens.tolist(), "log_values": True}  # fmt: skip
        path = folder / "scores/tiny-sd3/rtn-w8a8/steps-20/perplexity.json"
        path.write_text(json.dumps(score))
        edit_summary(folder, perplexity=value, perplexity_low=value - 3, perplexity_high=value + 3)
        sides.append(folder)
    one = of(compared(*sides), "perplexity")
    assert one.regression and one.value == pytest.approx(one.before * (math.exp(0.01) - 1), rel=1e-4)


def test_predictions_are_read_where_there_are_no_images(earlier, tmp_path):
    sides = [shutil.copytree(earlier, tmp_path / name) for name in "ab"]
    for side in sides:
        (side / "images").rename(side / "predictions")
        told = {"texts_sha256": "a" * 64, "prompts_sha256": None}
        edit(side, "manifest", lambda record, told=told: record.update(told))
    assert of(compared(*sides), "psnr").high == 0 and not compared(*sides).differences
    edit(sides[1], "manifest", lambda record: record.update(texts_sha256="b" * 64))
    found = compared(*sides)
    assert of(found, "psnr").high > 0 and [one.fact for one in found.differences] == ["prompts or texts"]


def test_a_result_without_its_files_is_compared_by_its_tables(earlier, tmp_path):
    (tmp_path / "tables").mkdir()
    shutil.copy(earlier / "tables/summary.csv", tmp_path / "tables")
    found = compared(earlier, tmp_path)
    assert found.outcome == NO_REGRESSION and of(found, "psnr").high > 0
    assert ("Example CPU, 8 cores", "unknown") in [(one.earlier, one.now) for one in found.differences]
    alone = compared(tmp_path, tmp_path)
    assert not alone.differences
    edit_summary(tmp_path, kernel="other")
    assert [(one.fact, one.now) for one in compared(tmp_path, tmp_path).differences] == []


def test_what_differs_is_named_with_its_rows(earlier, now):
    def rewritten(record):
        record["provenance"]["commit"], record["provenance"]["versions"]["torch"] = "fedcba", "2.14.0"

    for file in ("manifest", "measurement"):
        for method in METHODS:
            edit(now, file, rewritten, method)
    edit(now, "manifest", lambda record: record.update(seed=7))
    checkpoint = now / "checkpoints/tiny-sd3/rtn-w8a8/manifest.json"
    record = json.loads(checkpoint.read_text())
    record["settings"]["solver"] = {"name": "gptq", "damping": 0.02}
    checkpoint.write_text(json.dumps(record))
    facts = {one.fact: one for one in compared(earlier, now).differences}
    assert len(facts["torch"].rows) == len(METHODS) and "2.14.0" in facts["torch"].now
    assert (facts["seed"].earlier, facts["seed"].now, facts["seed"].rows) == ("0", "7", (ROW,))
    assert (facts["method: solver.name"].now, facts["method: solver.damping"].earlier) == ("gptq", "unknown")


def test_results_of_other_experiments_have_nothing_in_common(earlier, tmp_path, capsys):
    other = write(tmp_path / "other", model="another")
    assert compare_tool.main([str(earlier), str(other), "--fail-on-regression"]) == 2
    said = capsys.readouterr().out
    assert "Nothing was compared: the two have no row in common." in said and "Only in the new result: another" in said


@pytest.mark.filterwarnings("error")
def test_a_broken_models_perplexity_is_written_as_json(earlier, now, tmp_path):
    sides = [shutil.copytree(earlier, tmp_path / name) for name in "ab"]
    for side, nats in zip(sides, (3.0, 709.0), strict=True):
        score = {"status": "ok", "value": math.exp(nats), "values": [nats - 90, nats + 90], "log_values": True}
        path = side / "scores/tiny-sd3/rtn-w8a8/steps-20/perplexity.json"
        path.write_text(json.dumps(score))
        edit_summary(side, perplexity=math.exp(nats))
    compare_rule.main(["--earlier", str(sides[0]), "--results", str(sides[1])])
    found = json.loads((sides[1] / "tables/comparison.json").read_text())
    [one] = [one for one in found["changes"] if one["figure"] == "perplexity"]
    assert one["verdict"] == NOT_COMPARED and one["after"] > 1e300


def test_a_ratio_of_noise_leaves_the_comparison_undecided(earlier, now):
    edit_summary(now, latency_ratio_low=0.4, latency_ratio_high=1.5)
    edit_summary(now, latency_verdict="not told apart")
    assert of(compared(earlier, now), "time ratio").verdict in (tables.UNDECIDED, tables.TOO_NOISY)
    edit_summary(now, latency_ratio_low=0.2, latency_ratio_high=3.0)
    found = compared(earlier, now)
    assert of(found, "time ratio").verdict == tables.TOO_NOISY and found.outcome == UNDECIDED


# Mistakes


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: shutil.rmtree(folder / "tables"), "has no tables/summary.csv; name results/EXPERIMENT"),
        (lambda folder: (folder / "tables/summary.csv").write_text("a,b\n1,2\n"), "summary.csv: has no column model"),
        (lambda folder: (folder / "tables/summary.csv").write_text(""), "summary.csv: not a table"),
        (lambda folder: edit_summary(folder, model="../../etc"), "row 2: '../../etc' is no name"),
        (lambda folder: edit_summary(folder, method="nf4"), "lists tiny-sd3, steps-20, nf4 twice"),
        (lambda folder: edit(folder, "psnr", dict.clear), "psnr.json: has no status"),
    ],
)
def test_a_folder_that_is_no_result(earlier, now, capsys, spoil, words):
    spoil(now)
    assert compare_tool.main([str(earlier), str(now), "--json", str(now / "x.json")]) == 3
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out and not (now / "x.json").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name two results"),
        (["one"], "name two results"),
        (["--results", "r"], "name two results"),
        (["--methods", "a", "b"], "--methods compares two methods of the one result"),
        (["x", "y", "--methods", "a", "b", "--results", "r"], "--methods compares two methods of the one result"),
        (["--methods", "a", "b", "--results", "r", "--fail-on-regression"], "are for two results"),
        (["x", "y", "--tolerate", "psnr"], "'psnr' is not FIGURE=NUMBER"),
        (["x", "y", "--tolerate", "psnr=-1"], "'psnr=-1' is not FIGURE=NUMBER"),
        (["x", "y", "--tolerate", "psnr=nan"], "'psnr=nan' is not FIGURE=NUMBER"),
    ],
)
def test_wrong_words_end_with_3(capsys, words, sentence):
    """And not with argparse's 2, which says that a comparison is undecided."""
    with pytest.raises(SystemExit) as ended:
        compare_tool.main(words)
    assert ended.value.code == 3 and sentence in capsys.readouterr().err


def test_a_tolerated_figure_has_to_be_known(earlier, capsys):
    assert compare_tool.main([str(earlier), str(earlier), "--tolerate", "sharpness=1"]) == 3
    assert "error: sharpness: no such figure; one of psnr, fid" in capsys.readouterr().err


# Scripts


def test_the_exit_code_says_the_outcome_where_asked(earlier, tmp_path, capsys):
    sides = {"same": earlier, "slower": write(tmp_path / "slower", energy_factor=1.2),
             "gpu": write(tmp_path / "gpu", device=synthetic.GPU)}  # fmt: skip
    codes = {name: compare_tool.main([str(earlier), str(side), "--fail-on-regression"]) for name, side in sides.items()}
    assert codes == {"same": 0, "slower": 1, "gpu": 2}
    assert compare_tool.main([str(earlier), str(sides["slower"])]) == 0
    assert "quantwatt comparison: regression** (4 regressions, " in capsys.readouterr().out


def test_the_rules_script_writes_what_the_tool_does(earlier, tmp_path, capsys):
    slower = write(tmp_path / "slower", energy_factor=1.2)
    compare_rule.main(["--earlier", str(earlier), "--results", str(slower)])
    written = tmp_path / "x.json", tmp_path / "x.md"
    compare_tool.main([str(earlier), str(slower), "--json", str(written[0]), "--markdown", str(written[1])])
    assert (slower / "tables/comparison.md").read_text() == written[1].read_text() == capsys.readouterr().out
    found = json.loads((slower / "tables/comparison.json").read_text())
    assert found == json.loads(written[0].read_text()) and found["outcome"] == REGRESSION
    assert found["changes"][0]["regression"] and found["changes"][0]["figure"] in ("energy ratio", "time ratio")


def test_what_others_wrote_cannot_end_a_table(earlier, now, capsys):
    edit(now, "measurement", lambda record: record["provenance"]["versions"].update(torch="2|<b>\n3"))
    compare_tool.main([str(earlier), str(now)])
    assert "2\\|&lt;b> 3" in capsys.readouterr().out


# Two methods


def test_two_methods_have_all_figures(earlier, capsys):
    found = {one.figure: one for one in two_methods.compare(result_folder.read(earlier), "rtn-w8a8", "nf4")}
    assert found["psnr"].verdict == BETTER and found["psnr"].value == pytest.approx(41.2 - 32.6)
    assert (found["psnr"].after, found["psnr"].before) == (41.2, 32.6)
    assert found["time ratio"].value == pytest.approx(0.0480 / 0.0702)
    assert found["time ratio"].verdict.startswith(BETTER)
    assert found["size"].verdict == WORSE and found["size"].value == pytest.approx(3.71 / 2.21)
    assert found["fid"].verdict == NOT_COMPARED and "judge.json: the file does not exist" in found["fid"].note
    back = {one.figure: one for one in two_methods.compare(result_folder.read(earlier), "nf4", "rtn-w8a8")}
    assert back["psnr"].value == -found["psnr"].value and back["psnr"].verdict == WORSE
    assert compare_tool.main(["--results", str(earlier), "--methods", "rtn-w8a8", "nf4"]) == 0
    assert capsys.readouterr().out.startswith("**rtn-w8a8 against nf4** in ")


def test_distances_of_two_methods_are_those_of_their_features(earlier, now):
    rng = np.random.default_rng(0)
    fields = {"status": "ok", "reason": None, "extractor": "judge", "resize": "none", "weights_sha256": "a"}
    images = {"rtn-w8a8": rng.normal(0, 1, (40, 4)), "nf4": rng.normal(0.5, 1, (40, 4))}
    reference = rng.normal(0, 1, (60, 4)).astype(np.float32)
    for method, features in images.items():
        path = now / f"features/tiny-sd3/{method}/steps-20/judge.json"
        feature_files.write_features(path, {"image": features.astype(np.float32)}, fields)
        edit(now, "kid", lambda score: score.update(resamples=100), method)
    of_reference = fields | {"reference": "shapes", "images_sha256": "b"}
    feature_files.write_features(now / "features/reference/judge.json", {"image": reference}, of_reference)
    found = {one.figure: one for one in two_methods.compare(result_folder.read(now), "rtn-w8a8", "nf4")}
    sides = [images[name].astype(np.float32) for name in ("rtn-w8a8", "nf4")]
    expected = kid.change(*sides, reference, 100, 0)
    assert (found["kid"].value, found["kid"].low, found["kid"].high) == pytest.approx(expected[:3])
    assert found["kid"].verdict == BETTER and found["fid"].low is not None


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (("rtn-w8a8", "gptq"), "there is no method 'gptq'; there are bf16, rtn-w8a8"),
        (("nf4", "nf4"), "'nf4' twice"),
        (("nf4", "bf16"), "'bf16' is the baseline"),
    ],
)
def test_methods_that_cannot_be_compared(earlier, capsys, methods, words):
    assert compare_tool.main(["--results", str(earlier), "--methods", *methods]) == 3
    assert words in capsys.readouterr().err


def test_methods_of_other_prompts_are_compared_by_cost_alone(earlier, now):
    edit(now, "manifest", lambda record: record.update(prompts_sha256="f" * 64))
    found = {one.figure: one for one in two_methods.compare(result_folder.read(now), "rtn-w8a8", "nf4")}
    assert found["psnr"].note == "they have other prompts or seeds" and found["time ratio"].value is not None


# Simulation


def changes_of(z, error, tolerated=0.0):
    """Changes of metrics of which more is better, by values with this standard error."""
    base = Change("m", "s", "a", "psnr", NOT_COMPARED, before=30.0, after=30.0)
    return [
        change.told(base, (value, value - 1.959964 * error, value + 1.959964 * error), -1, 0.0, tolerated)
        for value in z
    ]  # fmt: skip


@pytest.mark.parametrize(("n_figures", "trials"), [(1, 2000), (20, 1000), (200, 400)])
def test_where_nothing_changed_a_regression_is_told_in_five_of_a_hundred_at_most(n_figures, trials):
    rng = np.random.default_rng(1)
    told = sum(
        any(one.regression for one in change.with_regressions(changes_of(0.1 * rng.standard_normal(n_figures), 0.1)))
        for _ in range(trials)
    )
    assert 0.025 <= told / trials <= 0.072  # 5 %, and the noise of the simulation


def test_a_change_at_what_is_tolerated_is_a_regression_in_five_of_a_hundred():
    rng, trials = np.random.default_rng(2), 2000
    values = -0.5 + 0.1 * rng.standard_normal(trials)
    told = sum(change.with_regressions([one])[0].regression for one in changes_of(values, 0.1, tolerated=0.5))
    assert 0.035 <= told / trials <= 0.065


@pytest.mark.parametrize("n", [16, 64])
def test_images_that_are_alike_are_a_regression_in_five_of_a_hundred(n, monkeypatch):
    """Values of single images whose distribution is skewed, as errors are: few of them are a little more often."""
    monkeypatch.setattr(method_pairs, "RESAMPLES", 1000)
    rng, trials, told = np.random.default_rng(5), 1000, 0
    for _ in range(trials):
        sides = [{"values": np.log(rng.gamma(4, size=n))} for _ in range(2)]
        interval = comparison.difference_of_images(*sides)
        [one] = changes_of([0.0], 0.1)
        one = change.told(one, interval, -1, 0.0, 0.0, n - 1, drawn=True)
        told += change.with_regressions([one])[0].regression
    assert 0.03 <= told / trials <= 0.072


def test_two_measurements_of_one_method_are_told_apart_by_cost_in_five_of_a_hundred():
    """Time ratios of eight processes each, without a margin: the one-sided test of their quotient."""
    rng, trials = np.random.default_rng(3), 1500
    told = 0
    for _ in range(trials):
        rows = []
        for _ in range(2):
            logs = math.log(0.8) + 0.03 * rng.standard_normal(8)
            reach = 2.364624 * logs.std(ddof=1) / math.sqrt(8)
            bounds = np.exp(logs.mean() + np.array([0, -reach, reach]))
            names = ("latency_ratio", "latency_ratio_low", "latency_ratio_high")
            rows.append(dict(zip(names, bounds, strict=True)) | {"n_processes": 8})
        [one] = comparison._costs(("m", "s", "a"), rows, {}, {"time ratio": 0.0}, False)
        told += change.with_regressions([one])[0].regression
    assert 0.035 <= told / trials <= 0.065


def test_one_regression_among_many_figures_is_found():
    rng = np.random.default_rng(4)
    found = change.with_regressions(changes_of([-0.6, *0.1 * rng.standard_normal(199)], 0.1))
    assert [one.regression for one in found] == [True, *[False] * 199]
    exact = dataclasses.replace(found[0], chance=0.0)
    assert change.with_regressions([exact])[0].regression


def test_names_are_those_of_the_summary(earlier):
    with pytest.raises(DataError, match="no such figure"):
        compared(earlier, earlier, tolerated={"psnr_db": 1})
