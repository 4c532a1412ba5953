import json
import re
from pathlib import Path

import pytest
import synthetic_results as synthetic

import plot
import summarize
import write_report
from quantwatt import report, tables

MODELS = Path(__file__).parents[2] / "resources" / "models"
PIXEL = "data:image/svg+xml;base64,PHN2Zy8+"
FIGURES = {name: {"wide": PIXEL, "narrow": PIXEL} for name in report.FIGURES}


def summary_of(results, **settings):
    cells = tables.read_cells(results, synthetic.write_tree(results, with_images=False, **settings), synthetic.METRICS)
    path = results / "summary.csv"
    tables.write_table(path, tables.summary_table(cells, "bf16"))
    return cells, tables.read_table(path)


def page_of(results, evaluation=None, experiment="embedded", **settings):
    cells, summary = summary_of(results, **settings)
    return report.render(
        write_report.TEMPLATE,
        experiment=experiment,
        cells=cells,
        metrics=synthetic.METRICS,
        baseline="bf16",
        summary=summary,
        layers=tables.layers_table(cells),
        figures=FIGURES,
        evaluation=evaluation,
    )


def sentence(results, **settings):
    [(_, segments)] = report.answers(summary_of(results, **settings)[1])
    return "".join(text for text, _ in segments)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(
        tmp_path_factory.mktemp("report"),
        synthetic.EVALUATION,
        failures={"gptq-w2a16": ("oom", "out of memory: 23.1 GB asked")},
    )


def row_of(page, method):
    table = page[page.index('<table class="summary">') :]
    return next(row for row in table.split("<tr") if f'scope="row">{method}<' in row).partition("</tr>")[0]


# --- the sentence


def test_less_energy_estimated(tmp_path):
    text = sentence(tmp_path)
    assert re.match(r"rtn-w8a8 uses an estimated 20\.0 % \[19\.\d, 20\.\d\] less energy per image than 16 bit", text)
    assert "at a change of the Fréchet distance of +0.02" in text
    assert "PSNR to the 16-bit images of 41.2 dB [40.8, 41.6]" in text
    assert "3.39 MB less memory (weights: 3.71 MB instead of 7.10 MB)." in text


def test_less_energy_measured(tmp_path):
    text = sentence(tmp_path, device=synthetic.GPU, meter="nvml")
    assert text.startswith("rtn-w8a8 uses 20.0 % [") and "estimated" not in text


def test_more_energy(tmp_path):
    text = sentence(tmp_path, device=synthetic.GPU, meter="nvml", energy_factor=1.4)
    assert text.startswith("No measured method saves energy: the cheapest, rtn-w8a8, uses ")
    assert "more energy per image than 16 bit" in text


def test_not_distinguishable(tmp_path):
    text = sentence(tmp_path, meter="nvml", energy_factor=1.25, real=["bf16", "rtn-w8a8"])
    assert text.startswith("rtn-w8a8's energy per image is not distinguishable from 16 bit's (")


def test_nothing_real(tmp_path):
    text = sentence(tmp_path, real=["bf16"])
    assert text.startswith(
        "Nothing was saved or measured here: every quantized method was only simulated on Example CPU"
    )
    assert "the closest in quality, rtn-w8a8" in text and "less energy" not in text


def test_no_baseline(tmp_path):
    text = sentence(tmp_path, failures={"bf16": ("oom", "out of memory")})
    assert text == "The 16-bit baseline has no measurement (out of memory), so nothing can be compared."


def test_no_energy(tmp_path):
    text = sentence(tmp_path, meter="rapl", energy_reason="rapl is unreadable")
    assert text.startswith("No energy could be read (rapl is unreadable). rtn-w8a8 takes 21.")
    assert "less time per image" in text


def test_overlapping_memory_is_not_a_saving(tmp_path):
    _, summary = summary_of(tmp_path)
    summary.loc[summary["method"] == "rtn-w8a8", "memory_mb_high"] = 720.0
    [(_, segments)] = report.answers(summary)
    assert "no distinguishable change in memory" in segments[-1][0]


# --- the page


def test_nothing_is_fetched(page):
    resources = re.findall(r"""(?:\s(?:src|srcset|href)=|url\()["']?([^"')\s>]+)""", page)
    assert resources and all(value.startswith("data:") for value in resources)
    assert "<script" not in page and "@import" not in page
    assert not re.search(r"https?://", page)


def test_the_first_page_comes_in_order(page):
    order = ['class="answer"', "Figure 1.", "Table 1.", "What these figures rest on", "Figure 2."]
    order += ["evaluated on their own", "Errors of the layers", "What failed, and why", "How to make this page again"]
    assert [page.index(text) for text in order] == sorted(page.index(text) for text in order)


def test_a_simulated_row_has_a_badge_and_a_reason_and_no_cost(page):
    row = row_of(page, "rtn-w4a8")
    assert '<span class="badge">simulated</span>' in row
    assert f'colspan="8">{report.DASH} no kernel computes rtn-w4a8 on this device</td>' in row
    assert "31.4" in row


def test_a_measured_row_shows_interval_and_verdict(page):
    row = row_of(page, "rtn-w8a8")
    assert "estimated</span>" in row and ">better</span>" in row
    assert "0.880<small>[0.875, 0.885]</small>" in row


def test_failures_are_listed(page):
    failed = page[page.index("What failed, and why") :]
    assert "gptq-w2a16" in failed and "out of memory: 23.1 GB asked" in failed and "rtn-w4a8" not in failed


def test_trust_box(page):
    for text in (
        "Example CPU, 8 cores",
        "energy is estimated, not measured",
        "8 blocks of at least 10 s in 2 processes",
        "3 of 24 (warming up)",
        "every 10 ms",
        "not comparable with Inception FID",
        "0123456789ab",
        "torch 2.13.0",
        "the same in every method",
    ):
        assert text in page, text


def test_evaluation_is_labelled(page):
    assert "Judge: unseen renders whose caption beats one with this attribute wrong" in page
    assert "one object" in page and "CPU seconds" in page
    assert "93.0 %" in page  # the judge's share for relations


def test_every_section_that_the_evaluation_writes_has_a_title():
    shipped = json.loads((MODELS / "evaluation.json").read_text())
    sections = {key for key, value in shipped.items() if isinstance(value, dict)}
    assert sections == set(report.EVALUATION_TITLES)


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
    cells = json.dumps(synthetic.write_tree(tmp_path)[:3])
    common = ["--results", str(tmp_path), "--cells", cells]
    metrics = ["--metrics", '["fid", "psnr"]', "--baseline", "bf16"]
    summarize.main([*common, *metrics])
    for name in report.FIGURES:
        plot.main([name, *common])
    write_report.main(["--experiment", "embedded", *common, *metrics])
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/svg+xml;base64,") == 8
    assert "KID" not in text[text.index('<table class="summary">') :].partition("</table>")[0]


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
    assert report.number(*arguments) == text


def test_megabytes():
    assert (report.megabytes(3.39), report.megabytes(5213.0)) == ("3.39 MB", "5.21 GB")
