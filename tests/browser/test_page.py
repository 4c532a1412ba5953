"""The report in a browser: nothing is fetched, nothing fails, and what a reader can move moves."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import synthetic_results as synthetic
from PIL import Image

import report as report_rule
from quantwatt.artifacts import layout
from quantwatt.report import layer_table, tables
from quantwatt.report import page as report_page
from quantwatt.report.cells import read_cells

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
AXE = Path(__file__).parent / "axe.min.js"
PIXEL = "data:image/svg+xml;base64,PHN2Zy8+"

if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def written(folder, write, edit=None, **settings):
    """A report of synthetic results with images, whose PSNR is known image by image; `edit`: of the written cells."""
    listed = write(folder, **settings)
    if edit:
        edit(listed)
    for cell in listed:
        path = layout.path(folder, "score", {**cell, "metric": "psnr"})
        score = json.loads(path.read_text())
        if score["value"] is not None:
            values = [round(score["value"] + (i % 5) - 2 - 9 * (i == 7), 3) for i in range(synthetic.N_IMAGES)]
            path.write_text(json.dumps(score | {"values": values}))
    cells = read_cells(folder, listed, synthetic.METRICS)
    tables.write_table(folder / "summary.csv", tables.summary_table(cells, "bf16", synthetic.SEEDS))
    page = report_page.render(
        report_rule.TEMPLATE,
        experiment="embedded",
        cells=cells,
        metrics=synthetic.METRICS,
        baseline="bf16",
        summary=tables.read_table(folder / "summary.csv"),
        layers=layer_table.layers_table(cells),
        figures={name: {"wide": PIXEL, "narrow": PIXEL} for name in layout.FIGURES},
        evaluations={"evaluation": synthetic.EVALUATION},
        results=folder,
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


REPORTS = {
    "ten methods": {"write": synthetic.write_tree},
    "25 methods": {"write": synthetic.write_many},
    "only simulated": {"write": synthetic.write_tree, "real": ["bf16"]},
    "no energy": {"write": synthetic.write_tree, "meter": "rapl", "energy_reason": "rapl is unreadable"},
}


@pytest.fixture(scope="module", params=REPORTS)
def path(request, tmp_path_factory):
    return written(tmp_path_factory.mktemp("report"), **REPORTS[request.param])


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    return written(tmp_path_factory.mktemp("ten"), synthetic.write_tree)


@pytest.fixture
def opened(browser):
    """Open a report; its errors, its warnings and what it asked for are collected and must be none."""
    pages, heard = [], []

    def open_page(path, width=1200, **settings):
        page = browser.new_page(viewport={"width": width, "height": 900}, **settings)
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("request", lambda request: request.url.startswith("data:") or heard.append(request.url))
        page.goto(path.as_uri())
        heard.remove(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not heard


def shown(page, selector):
    return [each.inner_text() for each in page.locator(selector).all() if each.is_visible()]


# Every report wide and narrow; one of them, of which all parts are shown, in every form.
FORMS = [*((name, width, "light") for name in REPORTS for width in (1200, 320)),
         ("25 methods", 1200, "dark"), ("25 methods", 390, "dark")]  # fmt: skip


@pytest.mark.parametrize(("path", "width", "scheme"), FORMS, indirect=["path"])
def test_no_rule_of_accessibility_is_broken_and_nothing_overflows(opened, path, width, scheme):
    page = opened(path, width, color_scheme=scheme)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []


def test_axes_move_the_chart(opened, ten):
    page = opened(ten)
    chart = page.locator("[data-part=scatter] svg[role=img]")
    assert chart.get_attribute("aria-label") == "PSNR of 2 methods against energy, ratio to bf16, estimated"
    first = chart.inner_html()
    assert "energy, estimated" in page.locator("[data-part=ratios]").inner_text()
    assert "estimated" in page.locator("#methods-table thead").inner_text()
    page.locator("[data-part=x]").select_option(label="weights (MB)")
    assert chart.get_attribute("aria-label") == "PSNR of 9 methods against weights (MB)" and chart.inner_html() != first
    page.locator("[data-part=y]").select_option(label="FID")
    assert "FID of 10 methods" in chart.get_attribute("aria-label")
    page.get_by_text("Methods that are shown").click()
    page.get_by_label("rtn-w2a16", exact=True).uncheck()
    assert "FID of 9 methods" in chart.get_attribute("aria-label")


def test_names_in_the_chart_do_not_meet(opened, path):
    page = opened(path)
    for cost in page.locator("[data-part=x] option").all():
        page.locator("[data-part=x]").select_option(cost.get_attribute("value"))
        boxes = [each.bounding_box() for each in page.locator("[data-part=scatter] text.name").all()]
        boxes = [box for box in boxes if box["width"]]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                apart = a["x"] >= b["x"] + b["width"] or b["x"] >= a["x"] + a["width"]
                assert apart or abs(a["y"] - b["y"]) > 12, (a, b)  # pixels between the lines of text


def test_a_dot_tells_its_figures(opened, ten):
    page = opened(ten)
    page.locator("[data-part=x]").select_option(label="weights (MB)")
    dot = page.locator("[data-part=scatter] g[stroke-width='2'] path").first
    dot.scroll_into_view_if_needed()
    box = dot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    text = page.locator("[data-part=scatter]").inner_text()
    assert re.search(r"PSNR: \d+\.\d dB \[", text) and "weights (MB): " in text


def test_the_limit_moves_the_answer(opened, ten):
    page = opened(ten)
    card, limit = page.locator(".card[data-method=rtn-w8a8]"), page.get_by_label("Limit of the PSNR")
    back = page.get_by_role("button", name="Back to the limit")
    assert "Take rtn-w8a8" in shown(page, ".answer")[0] and "take" in card.inner_text()
    limit.fill("50")
    [answer] = shown(page, ".answer")
    assert "Nothing to take: no measured method holds the limits. Nearest is rtn-w8a8" in answer
    assert card.get_attribute("class") == "card" and not card.locator(".role").is_visible()
    assert page.evaluate("data.groups[0].methods.every(({ taken }) => taken === null)")
    back.click()
    assert "Take rtn-w8a8" in shown(page, ".answer")[0] and not back.is_visible()
    assert card.get_attribute("class") == "card first" and card.locator(".role").inner_text() == "take"


def test_layers_of_two_methods_stand_side_by_side(opened, ten):
    page = opened(ten)
    page.get_by_text("Errors of the layers").click()
    box = page.locator("#layer-explorer")
    chart = box.locator("svg[role=img]")
    assert chart.get_attribute("aria-label") == "relative error of every layer of gptq-w4a8 and gptq-w3a16"
    assert chart.locator("g[fill-opacity='0.85'] path").count() == 2 * len(synthetic.LAYERS)
    dot = chart.locator("g[fill-opacity='0.85'] path").first
    dot.scroll_into_view_if_needed()
    at = dot.bounding_box()
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    text = box.locator("[data-part=chart]").inner_text()
    assert re.search(r"bits of a weight\W+error: \d\.\d+\W+rounded to nearest: \d\.\d+", text)
    box.get_by_label("beside").select_option(label="none")
    box.get_by_label("Shown").select_option(label="bits of a weight, with scales")
    assert chart.get_attribute("aria-label") == "bits of a weight, with scales of every layer of gptq-w4a8"


def test_phases_are_bars_or_ratios(opened, ten):
    page = opened(ten)
    page.get_by_text("Where time and energy go").click()
    box = page.locator("#phase-explorer")
    chart, timed = box.locator("svg[role=img]"), len(page.evaluate("data.phases[0].methods"))
    assert chart.get_attribute("aria-label") == f"time (s) of the phases of {timed} methods"
    assert chart.locator("rect[fill-opacity], rect[fill]").count() >= 3 * timed
    box.get_by_label("Shown").select_option("energy_j ratio")
    assert chart.get_attribute("aria-label").startswith("energy, ratio to the baseline's")
    assert chart.locator("circle[fill]").count() == 3 * timed
    assert box.locator("[data-part=chart]").inner_text().count("denoise") >= 1  # the legend


def test_power_over_time_of_two_methods_and_a_part_of_it(opened, ten):
    page = opened(ten)
    page.get_by_text("Power over time").first.click()
    box = page.locator("#power-explorer")
    chart = box.locator("svg[role=img]")
    first, second = page.evaluate("data.power.slice(0, 2).map(({ title }) => title)")
    assert "bf16" in first and chart.get_attribute("aria-label") == f"Power over time of {first} and {second}"
    ticks = chart.text_content()
    box.get_by_label("Seconds shown").select_option(label="3")
    box.get_by_label("from").fill("4")
    assert box.locator("[data-part=at]").inner_text() == "4.00 s" and chart.text_content() != ticks
    box.get_by_label("beside").select_option(label="none")
    assert chart.get_attribute("aria-label") == f"Power over time of {first}"
    page.mouse.move(*(box.locator("svg[role=img]").bounding_box()[key] + 150 for key in ("x", "y")))
    assert re.search(r"\d s: \S+\W+[\d.]+ W", box.locator("[data-part=chart]").inner_text())


def test_two_methods_are_compared(opened, ten):
    page = opened(ten)
    rows = page.locator("[data-part=pairs] tr")
    assert rows.count() == 9 and "rtn-w8a8" in rows.first.inner_text()
    assert re.search(r"0\.80\d\s+\[0\.79\d, 0\.80\d\]\s*better", rows.first.inner_text())


def test_tables_sort_and_filter(opened, ten):
    page = opened(ten)
    table = page.locator("#methods-table")

    def methods():
        return [row.locator("th").inner_text().split()[0] for row in table.locator("tbody tr:not(.group)").all()
                if row.is_visible()]  # fmt: skip

    before = methods()
    button = table.get_by_role("button", name="weights")
    button.focus()
    page.keyboard.press("Enter")
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("weights")
    sizes = [synthetic.METHODS[name].size_mb for name in methods()]
    assert sizes == sorted(sizes) and sorted(methods()) == sorted(before)
    button.click()
    assert [synthetic.METHODS[name].size_mb for name in methods()] == sizes[::-1]
    page.get_by_label("Filter").fill("gptq")
    assert set(methods()) == {name for name in before if name.startswith("gptq")}
    page.get_by_label("Filter").fill("no such method")
    assert methods() == [] and page.get_by_text("No row matches.").is_visible()
    page.get_by_label("Filter").fill("")
    table.get_by_role("button", name="PSNR").click()
    known = [synthetic.METHODS[name].psnr for name in methods() if synthetic.METHODS[name].psnr]
    assert known == sorted(known) and methods()[-1] == "bf16"  # a missing figure is last


def test_images_of_two_methods_are_laid_over_each_other(opened, ten):
    page = opened(ten)
    viewer = page.locator("#viewer")
    over = viewer.locator("[data-part=over]")
    slider = viewer.get_by_label("How much of the left image")
    slider.focus()
    page.keyboard.press("Home")
    assert "inset(0px 0px 0px 0%)" in over.evaluate("one => getComputedStyle(one).clipPath")
    viewer.locator("[data-part=right]").select_option(label="gptq-w2a16")
    assert viewer.locator("[data-part=right-name]").inner_text().startswith("gptq-w2a16: PSNR ")
    assert over.evaluate("one => one.decode().then(() => one.naturalWidth)") == 64
    worst = next(
        text for text in viewer.locator("[data-part=prompt] option").all_inner_texts() if text.startswith("worst")
    )
    viewer.locator("[data-part=prompt]").select_option(label=worst)
    viewer.get_by_role("checkbox").check()
    viewer.get_by_text("times as strong").wait_for()
    assert not slider.is_visible()
    canvas = viewer.locator("[data-part=canvas]")
    read = "one => [...one.getContext('2d').getImageData(0, 0, one.width, one.height).data]"
    assert canvas.is_visible() and max(value for i, value in enumerate(canvas.evaluate(read)) if i % 4 < 3) > 200
    viewer.locator("[data-part=right]").select_option(label="bf16")
    viewer.get_by_text("The two images are identical.").wait_for()


def test_the_worst_images_are_shown_first_to_last(opened, ten):
    page = opened(ten)
    found = [float(re.search(r"([\d.]+) dB", text)[1]) for text in page.locator(".worst li").all_inner_texts()]
    assert len(found) == 9 and found == sorted(found)
    sizes = page.locator(".worst img").evaluate_all("all => all.map((one) => one.naturalWidth)")
    assert set(sizes) == {64}


def test_print_shows_what_is_folded_and_the_static_figure(opened, ten, tmp_path):
    page = opened(ten)
    page.emulate_media(media="print")
    assert page.locator(".static").first.is_visible() and not page.locator("#explorer").is_visible()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.get_by_text("What each method is").is_visible() and page.locator("details:not([open])").count() == 0
    assert len(page.pdf()) > 10_000


def test_without_scripts_everything_is_text_and_pictures(browser, ten):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(ten.as_uri())
    assert page.locator(".static").first.is_visible() and not page.locator("#explorer").is_visible()
    assert "Take rtn-w8a8" in page.locator("main").inner_text() and page.locator("#methods-table tr").count() > 10
    context.close()


def test_names_run_nothing(opened, tmp_path):
    """A name is text wherever it is shown, also one that would be markup or end the script with the data."""
    hostile = "</script><img src=x onerror=alert(1)>"

    def edit(listed):
        path = layout.path(tmp_path, "checkpoint", next(cell for cell in listed if cell["method"] == "rtn-w8a8"))
        path.write_text(json.dumps(json.loads(path.read_text()) | {"solver": hostile}))

    page = opened(written(tmp_path, synthetic.write_tree, edit))
    assert hostile in page.locator("[data-part=scatter]").inner_text() and page.locator("img[src=x]").count() == 0


def test_forty_methods_and_three_samplings_stay_light(opened, tmp_path, monkeypatch):
    again = {f"{name}-again": method for name, method in list(synthetic.MANY.items())[1:16]}
    many = synthetic.MANY | again
    monkeypatch.setattr(synthetic, "MANY", many)
    path = written(tmp_path, synthetic.write_many)
    assert len(many) == 40 and path.stat().st_size < 6_000_000
    page = opened(path)
    slow = page.evaluate("""async () => {
        const times = [];
        for (let place = 0; place < document.body.scrollHeight; place += 400) {
            const begin = performance.now();
            window.scrollTo(0, place);
            await new Promise(requestAnimationFrame);
            times.push(performance.now() - begin);
        }
        return times.sort((a, b) => a - b)[Math.floor(0.9 * times.length)];
    }""")
    assert slow < 200  # milliseconds a frame, drawn by a processor


def test_an_image_in_the_page_is_the_one_on_disk(opened, ten):
    page = opened(ten)
    manifest = layout.path(ten.parent, "images", {"model": "tiny-sd3", "method": "bf16", "sampling": "steps-20"})
    first = Image.open(manifest.parent / json.loads(manifest.read_text())["images"][0]["file"]).convert("RGBA")
    read = """async (one) => {
        await one.decode();
        const canvas = new OffscreenCanvas(one.naturalWidth, one.naturalHeight), context = canvas.getContext("2d");
        context.drawImage(one, 0, 0);
        return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
    }"""
    assert bytes(page.locator("[data-part=under]").evaluate(read)) == first.tobytes()
