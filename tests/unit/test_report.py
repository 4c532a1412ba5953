import json
import re
from pathlib import Path

import pytest
import synthetic_results as synthetic

import figure
import recommend as recommend_rule
import report as report_rule
import tables as tables_rule
from quantwatt.artifacts import layout
from quantwatt.report import layer_table, tables
from quantwatt.report import page as report_page
from quantwatt.report.cells import read_cells
from quantwatt.report.page import methods, numbers
from quantwatt.report.page.evaluation import EVALUATION_TITLES, evaluation_sections

MODELS = Path(__file__).parents[2] / "resources" / "models"
PIXEL = "data:image/svg+xml;base64,PHN2Zy8+"
FIGURES = {name: {"wide": PIXEL, "narrow": PIXEL} for name in layout.FIGURES}


def summary_of(results, **settings):
    write = settings.pop("write", synthetic.write_tree)
    cells = read_cells(results, write(results, with_images=False, **settings), synthetic.METRICS)
    path = results / "summary.csv"
    tables.write_table(path, tables.summary_table(cells, "bf16", synthetic.SEEDS))
    return cells, tables.read_table(path)


def page_of(results, evaluations=None, experiment="embedded", **settings):
    cells, summary = summary_of(results, **settings)
    return report_page.render(
        report_rule.TEMPLATE,
        experiment=experiment,
        cells=cells,
        metrics=synthetic.METRICS,
        baseline="bf16",
        summary=summary,
        layers=layer_table.layers_table(cells),
        figures=FIGURES,
        evaluations=evaluations,
    )


def rendered(results, cells):
    tables.write_table(results / "summary.csv", tables.summary_table(cells, "bf16"))
    return report_page.render(
        report_rule.TEMPLATE,
        experiment="embedded",
        cells=cells,
        metrics=synthetic.METRICS,
        baseline="bf16",
        summary=tables.read_table(results / "summary.csv"),
        layers=layer_table.layers_table(cells),
        figures=FIGURES,
    )


def sentence(results, **settings):
    return told(summary_of(results, **settings)[1])


def told(summary):
    """The sentence of the only answer, under the limit of quality that is given."""
    [answer] = report_page.answers(summary)
    [segments] = [step["sentence"] for step in answer["steps"] if step["shown"]]
    return "".join(text for text, _ in segments)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(
        tmp_path_factory.mktemp("report"),
        {"evaluation": synthetic.EVALUATION},
        failures={"gptq-w2a16": ("oom", "out of memory: 23.1 GB asked")},
    )


def row_of(page, method):
    table = page[page.index('<table class="summary">') :]
    return next(row for row in table.split("<tr") if f'scope="row">{method}<' in row).partition("</tr>")[0]


# --- the sentence


def test_less_energy_estimated(tmp_path):
    text = sentence(tmp_path)
    assert re.match(r"Take rtn-w8a8: it uses an estimated 20\.0 % \[19\.\d, 20\.\d\] less energy per image than ", text)
    assert "with no visible change (PSNR 41.2 dB [40.8, 41.6]; FID +0.02" in text
    assert text.endswith(", and weights of 3.71 MB instead of 7.10 MB.")


def test_less_energy_measured(tmp_path):
    text = sentence(tmp_path, device=synthetic.GPU, meter="nvml")
    assert text.startswith("Take rtn-w8a8: it uses 20.0 % [") and "estimated" not in text


def test_more_energy(tmp_path):
    text = sentence(tmp_path, device=synthetic.GPU, meter="nvml", energy_factor=1.4)
    assert text.startswith("No measured method saves energy: the cheapest, rtn-w8a8, uses ")
    assert "more energy per image than the unquantized model (bf16)" in text


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ({"value": 1.0, "low": 0.9, "high": 1.1},
         "Take rtn-w8a8: it takes 21.3 % ["),
        ({"value": 0.6, "low": 0.5, "high": 0.7},
         "Take rtn-w8a8: it uses 40.0 % [30.0, 50.0] less energy per image than the unquantized model (bf16), with"),
        ({"value": 1.2, "low": 1.1, "high": 1.3},
         "Quantizing saves no energy: rtn-w8a8 uses 20.0 % [10.0, 30.0] more energy per image than"),
        ({"value": 0.0, "low": 0.0, "high": 1.3e8},
         "No energy could be compared (not measured: the machine was too noisy). Take rtn-w8a8: it takes 21.3 %"),
    ],
)  # fmt: skip
def test_the_sentence_words_every_verdict(tmp_path, method, text):
    found = noisy_sentence(tmp_path, {"rtn-w8a8": method})
    assert found.replace(numbers.MINUS, "-").startswith(text), found


def noisy_cells(results, energy_ratios, **changes):
    """Cells of which some have another ratio of energy."""
    written = synthetic.write_tree(results, meter="nvml", real=["bf16", "rtn-w8a8"], with_images=False)
    for method, ratio in energy_ratios.items():
        path = results / f"measurements/tiny-sd3/{method}/steps-20/measurement.json"
        record = json.loads(path.read_text())
        record["ratio"]["energy_j"] = ratio
        path.write_text(json.dumps(record | changes))
    return read_cells(results, written, synthetic.METRICS)


def noisy_sentence(results, energy_ratios):
    summary = tables.summary_table(noisy_cells(results, energy_ratios), "bf16")
    return told(summary)


def test_nothing_real(tmp_path):
    text = sentence(tmp_path, real=["bf16"])
    assert text.startswith(
        "Nothing was saved or measured here: every quantized method was only simulated on Example CPU"
    )
    assert "the closest in quality, rtn-w8a8" in text and "less energy" not in text


def test_no_baseline(tmp_path):
    text = sentence(tmp_path, failures={"bf16": ("oom", "out of memory")})
    assert text == "The baseline has no measurement (out of memory), so nothing can be compared."


def test_no_energy(tmp_path):
    text = sentence(tmp_path, meter="rapl", energy_reason="rapl is unreadable")
    assert text.startswith("No energy could be read (rapl is unreadable). Take rtn-w8a8: it takes 21.")
    assert "less time per image" in text


# --- the page


def test_nothing_is_fetched(page):
    markup = re.sub(
        "<script.*?</script>", "", page, flags=re.DOTALL
    )  # libraries name addresses; a browser's test is apart
    resources = re.findall(r"""(?:\s(?:src|srcset|href)=|url\()["']?([^"')\s>]+)""", markup)
    assert resources and all(value.startswith("data:") for value in resources)
    assert "<script src" not in page and "@import" not in page
    assert not re.search(r"https?://", markup)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'" in page


def test_the_first_page_comes_in_order(page):
    order = [
        'class="answer"',
        'class="cards"',
        "Figure 1.",
        "Figure 2.",
        "Table 1.",
        "What failed, and why",
        "Evidence",
    ]
    order += ["What these figures rest on", "What each method is", "Where time and energy go", "Errors of the layers"]
    order += ["evaluated on their own", "How to make this page again"]
    assert [page.index(text) for text in order] == sorted(page.index(text) for text in order)


def test_a_simulated_row_has_a_badge_and_a_reason_and_no_cost(page):
    row = row_of(page, "rtn-w4a8")
    assert '<span class="badge">simulated</span>' in row
    assert f'colspan="8">{numbers.DASH} no kernel computes rtn-w4a8 on this device</td>' in row
    assert "31.4" in row


def test_a_measured_row_shows_interval_and_verdict(page):
    row = row_of(page, "rtn-w8a8")
    assert "estimated</span>" in row and ">better</span>" in row
    assert "0.880<small>[0.875, 0.885]</small>" in row


def test_a_page_of_a_quiet_machine_has_no_banner(page):
    assert '<p class="banner">' not in page and "too noisy" not in page


def test_a_noisy_machine_is_told_on_the_first_screen(tmp_path):
    control = {"value": 1.0, "low": 0.68, "high": 1.3}
    text = plain(rendered(tmp_path, noisy_cells(tmp_path, {"bf16": control})))
    assert text.index("The machine was noisy while it was measured.") < text.index("Figure 1.")
    assert "bf16 measured against itself differs in energy by up to 47 %, so" in text
    assert "close other programs" in text and "--forcerun measure" in text


def test_no_absurd_interval_is_printed(tmp_path):
    absurd = {"value": 6.0, "median": 6.0, "low": 0.0, "high": 129744640.0, "n": 8}
    changes = {"latency_s": absurd, "energy_j": absurd,
               "phases": {"decode": {"latency_s": 1.0, "energy_j": 2.0, "mean_w": 2.0,
                                     "ratio": {"energy_j": absurd, "latency_s": None}}}}  # fmt: skip
    cells = noisy_cells(tmp_path, {"bf16": absurd, "rtn-w8a8": absurd}, **changes)
    text = rendered(tmp_path, cells)
    assert "12974464" not in text + (tmp_path / "summary.csv").read_text()
    assert row_of(text, "rtn-w8a8").count("not measured: the machine was too noisy") >= 3
    assert "differs in energy by any amount" in plain(text) and "energy: not measured: the machine was" in plain(text)
    assert line_of(section(text, "Where time and energy go"), "tiny-sd3 · rtn-w8a8")[4].endswith("was too noisy")


def test_disturbed_pairs_are_counted_beside_the_table(page):
    told = plain(section(page, "Table 1"))
    assert "Other programs disturbed 6 of 24 pairs, of bf16, rtn-w8a8 and nf4." in told
    assert "8<small>in 4</small><small>2 disturbed</small>" in row_of(page, "rtn-w8a8")


def test_phases_have_ratios(page):
    cells = line_of(section(page, "Where time and energy go"), "tiny-sd3 · rtn-w8a8")
    assert [cell.rpartition(">")[2] for cell in cells] == [
        *("text", "0.00192", "0.910 [0.900, 0.920]", "0.0352", "0.900 [0.880, 0.920]", "18.3"),
    ]


def test_failures_are_listed(page):
    failed = section(page, "What failed, and why")
    assert "gptq-w2a16" in failed and "out of memory: 23.1 GB asked" in failed and "rtn-w4a8" not in failed


# --- many methods, three seeds


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("many"), write=synthetic.write_many, experiment="embedded-methods")


def section(page, title):
    after = page[re.search(rf"<h[23]>{re.escape(title)}", page).end() :]
    return re.split("<h2>|<summary><h3>", after)[0]


def line_of(text, method):
    """The cells of a method's row as text."""
    row = next(row for row in text.split("<tr") if f">{method}</th>" in row).partition("</tr>")[0]
    return [re.sub(r"\s+", " ", re.sub("<[^>]*>", "", cell)).strip() for cell in row.split("<td")[1:]]


def test_seeds_stand_side_by_side(many, page):
    text = section(many, "Table 2")
    assert [f"seed {seed}" in text for seed in (0, 1000, 2000)] == [True] * 3
    scores = re.findall(r">(\d\d\.\d) <small>\[(\d\d\.\d), (\d\d\.\d)\]", text[text.index("gptq-w4a8-segments") :])
    assert [float(low) < float(value) < float(high) for value, low, high in scores[:3]] == [True] * 3
    assert len({value for value, *_ in scores[:3]}) > 1
    assert "Table 2" not in page and "seeds from above" not in page


def test_table_1_holds_one_block_of_replicates(many):
    table, _, complete = section(many, "Table 1").partition("<details>")
    assert complete.count('<tr class="group">') == 1
    assert table.count('<tr class="group">') == 1 and table.count('scope="row">rtn-w8a8<') == 1


def test_an_unsupported_method_is_reported_once_with_its_reason(many):
    reason = "optimum-quanto is not installed"
    for title, tables_of_it in (("Table 1", 2), ("What failed", 1)):
        assert re.sub("<[^>]*>", "", section(many, title)).count(reason) == tables_of_it, title
    row = row_of(many, "quanto-int8")
    assert '<span class="badge failed">unsupported</span>' in row and "— / —" in row
    sampling, what, status, why = line_of(section(many, "What failed"), "quanto-int8")[1:]
    assert [text.partition(">")[2] for text in (sampling, what, status, why)] == [
        "all",
        "the method",
        "unsupported",
        reason,
    ]
    assert "quanto-int8" not in section(many, "Errors of the layers")


def test_methods_that_miss_the_same_share_a_line(tmp_path):
    cells, _ = summary_of(tmp_path, meter="rapl", energy_reason="rapl is unreadable")
    [row] = report_page.failures(cells)
    assert row["methods"] == ["bf16", "rtn-w8a8", "nf4"] and row["what"] == "energy" and row["samplings"] == ()


def test_a_cost_that_was_not_asked_for_is_no_failure(tmp_path):
    written = synthetic.write_many(tmp_path, with_images=False)
    path = tmp_path / "measurements/tiny-sd3/rtn-w8a8/seed-1000/measurement.json"
    unmeasured = {"status": "unmeasured", "reason": "measuring.samplings leaves it out", "latency_s": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | unmeasured))
    cells = read_cells(tmp_path, written, synthetic.METRICS)
    assert not [row for row in report_page.failures(cells) if row["status"] == "unmeasured"]
    row = tables.summary_table(cells, "bf16").set_index(["method", "sampling"]).loc["rtn-w8a8", "seed-1000"]
    assert row["status"] == "unmeasured" and row["psnr_db"] > 0 and row["latency_s"] != row["latency_s"]


def test_where_no_cost_is_measured_the_table_shows_quality_alone(tmp_path):
    written = synthetic.write_tree(tmp_path, with_images=False)
    for cell in written:
        path = layout.path(tmp_path, "measurement", cell)
        of_cell = json.loads(path.read_text())
        none = dict.fromkeys(("latency_s", "energy_j", "memory_mb"))
        path.write_text(json.dumps(of_cell | none | {"status": "unmeasured", "reason": "`measuring` leaves it out"}))
    page = rendered(tmp_path, read_cells(tmp_path, written, synthetic.METRICS))
    table = re.search(r'<table class="summary" id="methods-table".*?</table>', page, re.DOTALL)[0]
    heads = re.findall(r'<th scope="col">(\w[\w ]*)', table)
    assert heads[:3] == ["method", "bits", "weights"] and {"PSNR", "SSIM"} <= set(heads[3:])
    assert not {"energy", "time", "memory"} & set(heads) and "unmeasured" not in table and "leaves it out" not in table
    assert "No cost was measured." in page and "A ratio is <em>equal</em>" not in page


def test_a_failure_under_one_seed_only_names_it(tmp_path):
    written = synthetic.write_many(tmp_path, with_images=False)
    path = tmp_path / "images/tiny-sd3/rtn-w2a16/seed-1000/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "degenerate", "reason": "image 3 is black"}))
    found = report_page.failures(read_cells(tmp_path, written, synthetic.METRICS))
    row = next(row for row in found if row["methods"] == ["rtn-w2a16"])
    assert (row["what"], row["samplings"], row["reason"]) == ("outputs", ("seed-1000",), "image 3 is black")


def test_errors_before_and_after_by_method(many):
    text = section(many, "Errors of the layers")
    cells = line_of(text, "qronos-w4a8")
    assert "outputs against the float model&#39;s" in cells[0] and cells[1] == ">81"
    assert float(cells[2].strip(">")) > float(cells[3].strip(">")) and "norm1" in cells[4]
    assert line_of(text, "torchao-int8")[2] == f">{numbers.DASH}"


def test_what_quantizing_took_by_method(many):
    text = section(many, "What quantizing itself took")
    _, seconds, solving, joules, solving_j, fell_back, repaid = line_of(text, "brecq-w4a8")
    assert (seconds, solving, solving_j) == (">4.20", ">2.43", ">48.6") and joules == ">estimated 96.0"
    assert fell_back.endswith("1 of 81 to rtn") and repaid == f">{numbers.DASH}"
    assert line_of(text, "rtn-w8a8")[-1] == ">437" and line_of(text, "rtn-w8a8")[-2].endswith("none")
    assert text.count('scope="row">') == 21  # each method once, not once per seed


def test_the_answer_does_not_choose_among_seeds(tmp_path):
    _, summary = summary_of(tmp_path, write=synthetic.write_many)
    lucky = (summary["sampling"] == "seed-2000") & (summary["method"] == "rtn-w8a8")
    summary.loc[lucky, ["energy_ratio", "energy_ratio_low", "energy_ratio_high"]] = 0.5, 0.49, 0.51
    assert "20.0 %" in told(summary)


# --- several numbers of steps, mixed allocations


def page_with(results, cells, baseline, metrics, samplings=None, tried=()):
    read = read_cells(results, cells, metrics)
    tables.write_table(results / "summary.csv", tables.summary_table(read, baseline, samplings))
    return report_page.render(
        report_rule.TEMPLATE,
        experiment="few-step",
        cells=read,
        metrics=metrics,
        baseline=baseline,
        summary=tables.read_table(results / "summary.csv"),
        layers=layer_table.layers_table(read),
        sensitivity=layer_table.sensitivity_table(read, tables_rule.tried_in(results, tried)),
        figures=FIGURES,
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    results = tmp_path_factory.mktemp("swept")
    cells = synthetic.write_sweep(results, with_images=False)
    return page_with(results, cells, "float32", ["fid", "psnr"], synthetic.steps_settings())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    results = tmp_path_factory.mktemp("mixed")
    cells = synthetic.write_mixed(results, with_images=False)
    return page_with(results, cells, "fp16", ["fid", "psnr"], tried=[{"model": "few-step", "sensitivity": "tried"}])


def plain(text):
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", "", text))


def test_steps_stand_side_by_side(swept):
    text = section(swept, "Table 2. The same methods with more steps")
    assert [f"FID, {steps}" in text for steps in ("1 step<", "2 steps<", "4 steps<", "8 steps<")] == [True] * 4
    assert [cell.split(">")[1].split(" ")[0] for cell in line_of(text, "rtn-w4")] == ["2.90", "2.32", "1.74", "1.68"]
    assert "[2.60, 3.20]" in text and "Figure 3." in text


def test_table_1_holds_the_first_number_of_steps_and_folds_the_others(swept):
    table, _, folded = section(swept, "Table 1").partition("<details>")
    assert table.count('<tr class="group">') == 1 and table.count('scope="row">rtn-w8<') == 1
    complete, _, folded = folded.partition("The same with more steps")
    assert complete.count('scope="row">rtn-w8<') == 1
    assert folded.count('<tr class="group">') == 3 and folded.count('scope="row">rtn-w8<') == 3
    assert "digits · steps-8" in folded and "digits · step-1" in table
    assert "one metric of theirs is in Table 2" in plain(table)


def test_a_sentence_says_for_how_many_methods_more_steps_did_not_help(swept):
    text = plain(section(swept, "Table 2"))
    assert (
        "More steps did not help 6 of 8 methods: the Fréchet distance at 8 steps, against 1, is worse for rtn-w2;"
        in text
    )
    assert (
        "has intervals that overlap for float32, rtn-w8, gptq-w2, brecq-w8 and brecq-w2; is better for rtn-w4" in text
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (-2.0, "More steps helped all 8 methods: the Fréchet distance at 8 is better than at 1."),
        (
            0.0,
            "More steps did not help 8 of 8 methods: .* at 8 steps, against 1, has intervals that overlap for float32,",
        ),
        (2.0, "More steps did not help 8 of 8 methods: .* at 8 steps, against 1, is worse for float32,"),
        (
            None,
            "No method has an interval of the Fréchet distance both at 1 and at 8 steps; by the figures alone it is no "
            "better at 8 for float32, rtn-w2, gptq-w2 and brecq-w2.",
        ),
    ],
)
def test_what_more_steps_change(tmp_path, change, text):
    cells = read_cells(tmp_path, synthetic.write_sweep(tmp_path, with_images=False), ["fid"])
    summary = tables.summary_table(cells, "float32", synthetic.steps_settings())
    summary[["fid_low", "fid_high"]] = [9.5, 10.5]
    summary.loc[summary["steps"] == 8, ["fid_low", "fid_high"]] = [9.5 + (change or 0), 10.5 + (change or 0)]
    if change is None:
        summary[["fid_low", "fid_high"]] = None
        at_most, two_bits = summary["steps"] == 8, summary["method"].str.contains("w2|float")
        summary["fid"] = 10.0 - (at_most & ~two_bits)
    [part] = report_page.step_tables(summary)
    assert re.match(text, part["sentence"])


def test_more_steps_are_judged_by_a_metric_with_intervals_that_compares_with_nothing_of_the_same_steps(tmp_path):
    cells = read_cells(tmp_path, synthetic.write_sweep(tmp_path, with_images=False), ["fid", "psnr"])
    summary = tables.summary_table(cells, "float32", synthetic.steps_settings())
    summary[["fid_low", "fid_high"]] = None  # Inception's features have none
    summary[["class_accuracy", "class_accuracy_low", "class_accuracy_high"]] = [0.9, 0.89, 0.91]
    [part] = report_page.step_tables(summary)
    assert part["metric"].column == "class_accuracy" and "share read as the class asked for at 8" in part["sentence"]
    summary[["class_accuracy", "class_accuracy_low", "class_accuracy_high"]] = None
    [part] = report_page.step_tables(summary)
    assert part["metric"].column == "fid"
    summary["fid"] = None
    [part] = report_page.step_tables(summary)
    assert part["metric"].column == "psnr_db" and part["sentence"] == (
        "The PSNR to the unquantized image cannot show whether more steps help: each number of steps is compared "
        "with unquantized images of the same number of steps."
    )


def test_sections_that_do_not_apply_are_left_out(page, swept, mixed):
    for title, where in (("with more steps", swept), ("Formats chosen by layer or by step", mixed)):
        assert [title in text for text in (page, swept, mixed)] == [where is text for text in (page, swept, mixed)]
    assert "The same with more steps" not in page and "most sensitive" not in swept


def test_mixed_methods_are_held_against_uniform_ones(mixed):
    text = section(mixed, "Formats chosen by layer or by step")
    assert (
        "mixdq-w8a8, mixdq-w5a8 and mixdq-w4a8 are significantly better (intervals apart) in PSNR to the unquantized "
        "image than the best uniform method with as many average bits, or the next larger number; sqnr-w8a8, "
        "mixdq-w4 and mixdq-w3.66 are not."
    ) in plain(text)
    better, other = (line_of(text, method) for method in ("mixdq-w8a8", "sqnr-w8a8"))
    assert [cell.rpartition(">")[2] for cell in better] == [
        *("8.04 / 8.1", "33.2 [32.8, 33.6]", "bos-w8a8", "8.06 / 8", "27.4 [27.0, 27.8]", "better"),
    ]
    assert other[-1].endswith("not better") and other[1] == ">26.9 [26.5, 27.3]"


@pytest.mark.parametrize(
    ("methods", "text"),
    [
        (["naive-w4a8", "mixdq-w8a8"], "No uniform method has as many average bits as mixdq-w8a8."),
        (["bos-w8a8", "sqnr-w8a8"], "No mixed method is significantly better (intervals apart) in "),
        (["naive-w4a8", "mixdq-w4a8"], "mixdq-w4a8 is significantly better (intervals apart) in "),
    ],
)
def test_a_sentence_on_mixed_methods(tmp_path, methods, text):
    cells = read_cells(tmp_path, synthetic.write_mixed(tmp_path, with_images=False), ["psnr"])
    summary = tables.summary_table(cells, "fp16")
    [part] = report_page.budget_comparisons(summary[summary["method"].isin(["fp16", *methods])])
    assert part["sentence"].startswith(text) and part["sentence"].count(".") == 1


def test_the_most_sensitive_layers_are_named_group_by_group(mixed):
    text = plain(section(mixed, "Formats chosen by layer or by step"))
    assert "the 5 most sensitive of 30 content layersfew-step · tried: SSIM of images" in text
    assert "the 5 most sensitive of 48 quality layersfew-step · tried: SQNR of the denoiser&#39;s output (dB)" in text
    layer = (
        mixed[mixed.index("of 30 content layers") :]
        .partition('<tr><th scope="row" class="wrapped">')[2]
        .partition("<")[0]
    )
    assert layer.endswith("attn2.to_k") and len(line_of(section(mixed, "Formats"), layer)) == 5


def test_an_ablation_keeps_the_experiments_order(mixed):
    rows = re.findall(r'<th scope="row">([\w.-]+)', section(mixed, "Table 1"))
    assert rows == 2 * list(synthetic.MIXED)  # in seven columns, and in all


# --- methods that draw their own way


def test_a_cache_and_own_steps_stand_beside_the_method_in_its_card_and_in_what_was_done(tmp_path):
    page = page_of(tmp_path, methods=synthetic.DRAWN)
    told = {"cached": "first-block cache (33 % skipped)", "steps-10": "10 steps"}
    told |= {"rtn-w8a8-both": "first-block cache (33 % skipped), 10 steps"}
    for method, words in told.items():
        assert f'scope="row">{method}<br><small>{words}</small>' in page
    assert 'scope="row">rtn-w8a8<br><small>' not in page
    assert "cached: 40 of 120 calls of blocks; rtn-w8a8-cached: 40 of 120 calls of blocks" in page
    assert '"bits":"8 / 8 bits, first-block cache (33 % skipped), 10 steps"' in page
    assert "The same methods with more steps" not in page  # a method's own steps are no sweep of samplings
    cells, summary = summary_of(tmp_path / "again", methods=synthetic.DRAWN)
    assert tables.by_steps(summary) == []
    by_name = {cell.method: cell.checkpoint["settings"] for cell in cells}
    assert methods.short(by_name["rtn-w8a8-both"]).endswith("; cache first-block: threshold 0.2; 10 steps")
    assert methods.short(by_name["cached"]) == "not quantized; cache first-block: threshold 0.2"
    rows = {row["method"]: row["also"] for row in methods.method_rows(cells)}
    assert rows["steps-10"] == "10 steps" and rows["rtn-w8a8-cached"] == "cache first-block: threshold 0.2"


# --- the rest of the page


def test_trust_box(page):
    for text in (
        "Example CPU, 8 cores",
        "<dd>torch._int_mm: rtn-w8a8</dd>",
        "energy is estimated, not measured",
        "8 of each method in 4 processes that hold both: a block of the method next to one of the baseline",
        "disturbed 6 of 24 pairs (they count only where fewer than four processes have others), took 12.5 % of the CPU",
        "the precision of ±5 %: bf16, rtn-w8a8, nf4",
        "97 %, so that 95 % hold although measuring ends at a width: Student&#39;s t over the Hodges-Lehmann estimates",
        "energy 1.000 [0.990, 1.008], up to 1 % from 1; time 1.000 [0.990, 1.008], up to 1 % from 1",
        "they add up to: energy -1 % from the whole, time -1 % from the whole",
        "3 of 24 (warming up)",
        "every 10 ms",
        "median of 200 timed runs of 4 in the pairs&#39; blocks",
        "peak RSS of a fresh process of each method, in which nothing is timed: one value, without interval",
        "slope at the end 0.5 to 2 °C per minute; 3 of 6 processes were not steady at the time limit",
        "power 37.5 s, thermal 0 s",
        "not comparable with Inception FID",
        "0123456789ab",
        "torch 2.13.0",
        "the same in every method",
    ):
        assert text in page, text


def test_what_falls_short_of_the_protocol_is_said_of_measured_energy(tmp_path, page):
    assert "Below the protocol" not in page  # estimated
    measured = page_of(tmp_path, device=synthetic.GPU, meter="nvml")
    assert "Below the protocol" in measured
    assert "<dd>block_s 5 (at least 10); idle_s 5 (at least 30)</dd>" in measured


def test_without_a_control_the_trust_box_says_so(tmp_path):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    path = tmp_path / "measurements" / cells[0]["model"] / "bf16" / cells[0]["sampling"] / "measurement.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"ratio": {"energy_j": None, "latency_s": None}}))
    facts = dict(report_page.trust(read_cells(tmp_path, cells, []), "bf16")[0][1])
    assert facts["Baseline against itself"].startswith("no control was measured")


@pytest.mark.parametrize(
    ("changes", "label", "text"),
    [
        ({"in_pairs": False}, "Took turns by process",
         "bf16: memory did not hold the method and the baseline together"),
        ({"known": False}, "Ended by",
         "the precision of ±5 %: rtn-w8a8, nf4; the limit of 60 s or 8 processes: bf16"),
        ({"phases_check": {"energy_j": None, "latency_s": {"difference": 0.2, "verdict": "apart"}}}, "Phases",
         "run alone, they add up to: energy -1 % from the whole, time -1 to 20 % from the whole (more than 5 % apart: "
         "bf16)"),
        ({"phases_check": {"energy_j": None, "latency_s": None}}, "Phases",
         "run alone, they add up to: energy -1 % from the whole, time -1 % from the whole; other programs disturbed "
         "all pairs of bf16"),
        ({"n_processes": 1, "level": 0.95}, "Intervals of ratios",
         "95 %: Student's t over the pairs of one process; 97 %, so that 95 % hold although measuring ends at a width: "
         "Student's t over the Hodges-Lehmann estimates of the processes"),
        ({"pairs": {"n": 20, "disturbed": 0}}, "Pairs",
         "8 to 20 of each method in 4 processes that hold both: a block of the method next to one of the baseline, "
         "each at least 5 s"),
    ],
)  # fmt: skip
def test_the_trust_box_tells_how_a_method_was_measured(tmp_path, changes, label, text):
    cells = synthetic.write_tree(tmp_path, with_images=False)
    path = tmp_path / "measurements/tiny-sd3/bf16/steps-20/measurement.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert dict(report_page.trust(read_cells(tmp_path, cells, []), "bf16")[0][1])[label] == text


def test_a_block_as_long_as_the_meter_needs_is_below_the_protocol(tmp_path):
    cells = synthetic.write_tree(tmp_path, device=synthetic.GPU, meter="nvml", with_images=False)
    for path in tmp_path.glob("measurements/*/*/*/measurement.json"):
        record = json.loads(path.read_text())
        record.get("measuring", {})["block_s"] = None
        path.write_text(json.dumps(record))
    facts = dict(report_page.trust(read_cells(tmp_path, cells, []), "bf16")[0][1])
    assert facts["Below the protocol"].startswith("block_s: what the meter needs (at least 10); ")
    assert facts["Pairs"].endswith("each as long as the meter needs")


def test_evaluation_is_labelled(page):
    assert "Judge: unseen renders whose caption beats one with this attribute wrong" in page
    assert "one object" in page and "CPU seconds" in page
    assert "93.0 %" in page  # the judge's share for relations


def test_every_section_that_the_evaluation_writes_has_a_title():
    shipped = [json.loads(path.read_text()) for path in MODELS.glob("evaluation*.json")]
    assert {key for one in shipped for key, value in one.items() if isinstance(value, dict)} == set(EVALUATION_TITLES)


def test_the_evaluation_of_each_model_is_named_where_there_are_several():
    own = {name: json.loads((MODELS / f"evaluation-{name}.json").read_text()) for name in ("tiny-gpt2", "tiny-sdxl")}
    titles = [part["title"] for part in evaluation_sections(own)]
    assert titles[:3] == ["tiny-gpt2", "tiny-gpt2: Training", "tiny-sdxl"]
    assert [part["title"] for part in evaluation_sections({"tiny-gpt2": own["tiny-gpt2"]})] == [None, "Training"]


def test_names_are_escaped(tmp_path):
    evil = "<b onload=x>&\"'"
    page = page_of(
        tmp_path,
        {evil: {evil: 1}},
        experiment=evil,
        device=synthetic.CPU | {"name": evil},
        failures={"nf4": ("unsupported", evil)},
    )
    assert "<b onload" not in page
    assert page.count("&lt;b onload=x&gt;&amp;&#34;&#39;") > 5


def test_devices_are_separate_groups_of_rows(tmp_path):
    devices = dict.fromkeys(synthetic.METHODS, synthetic.CPU) | {"rtn-w8a8": synthetic.GPU}
    page = page_of(tmp_path, device=devices)
    table = page[page.index('<table class="summary">') :].partition("</table>")[0]
    assert table.count('<tr class="group">') == 2
    assert page.count('<div class="trust">') == 2


def test_a_fake_device_is_watermarked(tmp_path, page):
    fake = page_of(tmp_path, device=synthetic.FAKE, meter="nvml")
    assert '<div class="watermark" aria-hidden="true">FAKE</div>' in fake and "<title>FAKE:" in fake
    assert '<div class="watermark"' not in page


def test_the_scripts_make_the_page(tmp_path):
    grid = synthetic.write_grid(tmp_path, synthetic.write_tree(tmp_path)[:3], metrics=["fid", "psnr"])
    common = ["--results", str(tmp_path), "--grid", grid]
    tables_rule.main(common)
    recommend_rule.main(["--results", str(tmp_path)])
    for name in layout.FIGURES:
        figure.main([name, *common])
    report_rule.main(["--experiment", "embedded", *common])
    text = (tmp_path / "report.html").read_text()
    # Eight figures in two widths, but for the grid of images: one sampling has no seeds to compare.
    assert text.count("data:image/svg+xml;base64,") == 15
    assert "KID" not in text[text.index('<table class="summary">') :].partition("</table>")[0]


def test_every_figure_is_in_the_page_and_has_a_caption():
    captions = (report_rule.TEMPLATE.parents[1] / "captions" / "figure.rst").read_text()
    template = "".join(path.read_text() for path in report_rule.TEMPLATE.parent.glob("*.html"))
    for name in layout.FIGURES:
        assert f'\n"{name}": "' in captions and f'picture("{name}", ' in template


def test_text_models_have_no_figures_of_images(tmp_path):
    for name in layout.FIGURES:
        for end in (".svg", "-narrow.svg"):
            (tmp_path / f"{name}{end}").write_text("<svg/>")
    assert list(report_page.embed_figures(tmp_path)) == list(layout.FIGURES)
    left_out = set(layout.FIGURES) - set(report_page.embed_figures(tmp_path, images=False))
    assert left_out == {"image_grid", "steps", "budget", "sensitivity"}


# --- numbers


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.8801,), "0.880"),
        ((1581.4,), "1581"),
        ((-0.25,), "\u22120.250"),
        ((None,), "\u2014"),
        ((float("nan"),), "\u2014"),
        ((0.0,), "0"),
        ((0.9996, 3, False, (0.9966, 1.0026)), "1.000"),
        ((0.02, 3, True, (-0.404, 0.444)), "+0.020"),
    ],
)
def test_number(arguments, text):
    assert numbers.number(*arguments) == text


def test_megabytes():
    assert (numbers.megabytes(3.39), numbers.megabytes(5213.0)) == ("3.39 MB", "5.21 GB")


def test_the_trust_box_tells_what_was_done_to_models_and_inputs(tmp_path):
    cells = synthetic.write_tree(tmp_path)
    for cell, told in zip(cells, [{"repeat_psnr": None}, {"repeat_psnr": 71.25}, {}], strict=False):
        path = tmp_path / f"images/{cell['model']}/{cell['method']}/{cell['sampling']}/manifest.json"
        own = {"reading": ["2 blank lines left out"], "safety_checker": "not loaded", **told}
        path.write_text(json.dumps(json.loads(path.read_text()) | own))
    facts = dict(report_page.trust(read_cells(tmp_path, cells, []), "bf16")[0][1])
    assert facts["Left out in reading"] == "2 blank lines left out" and facts["Safety checker"] == "not loaded"
    assert facts["Drawn twice"] == "the same images; images of a PSNR of 71.2 dB to the first"


def test_equal_results_make_equal_pages(tmp_path):
    assert page_of(tmp_path / "one") == page_of(tmp_path / "two")
