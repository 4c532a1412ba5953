"""The book: a page of bundles that loads nothing, escapes every name, and never ranks what two devices took."""

import base64
import hashlib
import itertools
import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import bundles
import pytest
import synthetic_results
import yaml

from quantwatt.artifacts.errors import DataError
from quantwatt.report import tables
from quantwatt.report.book import archive, label, model_card, page, reading, verdicts
from tools import book as tool

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
VOID = {"meta", "link", "img", "br", "input", "hr", "path", "rect"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; alert(1) //",
    "</script><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "a|b`c`[d](http://example.org)",
    "--- !!python/object: x",
    "&lt;b&gt; &#60;",
    "../../etc/passwd",
)


class Page(HTMLParser):
    """Elements of a page: (name, attributes, text), and faults of nesting."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.faults = [], [], []
        self.feed(text)
        self.faults += self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.elements[self.open.pop()][0] != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        for number in self.open:
            self.elements[number][2] += data

    def all(self, *tags):
        return [element for element in self.elements if element[0] in tags]


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    return bundles.packed(tmp_path_factory.mktemp("a") / "cpu-study")


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    return bundles.packed(tmp_path_factory.mktemp("b") / "gpu-study", device=synthetic_results.GPU, meter="nvml",
                          model="sd35")  # fmt: skip


def rendered(*paths):
    return page.render(tool.TEMPLATE, [reading.read_bundle(path) for path in paths])


@pytest.fixture(scope="module")
def text(cpu, gpu):
    return rendered(cpu, gpu)


def hostile(path, target):
    """A bundle whose methods have names that a careless page would run."""
    names = dict(zip(synthetic_results.METHODS, HOSTILE, strict=True))

    def edit(members, fields):
        for old, new in names.items():
            bundles.rename(old, new)(members, fields)
        bundles.rename("tiny-sd3", '<img src="http://example.org/x">', "model")(members, fields)
        for column in ("device", "reason", "energy_reason"):
            bundles.edit_row(2, **{column: f"<script>alert('{column}')</script>"})(members, fields)
        bundles.edit_json("provenance.json", lambda v: v.update(commits=["<script src=//example.org>"]))(
            members, fields
        )
        fields["experiment"] = "<style>*{display:none}</style>"

    return bundles.repacked(path, target, edit)


# The page


def test_the_page_is_well_formed_and_loads_nothing(text):
    read = Page(text)
    assert not read.faults
    for tag, attributes, _ in read.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "action", "style")]
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#")
        assert tag not in ("link", "iframe", "object", "embed", "base", "audio", "video")
    outside = re.findall(r"https?://[^\s\"<]+", re.sub(r"<pre.*?</pre>", "", text, flags=re.S))
    assert set(outside) <= {"http://www.w3.org/2000/svg"}  # a name, which nothing fetches


def test_only_the_pages_own_script_and_style_may_run(text):
    read = Page(text)
    [policy] = [a["content"] for t, a, _ in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    for kind in ("script", "style"):
        [[_, _, content]] = read.all(kind)
        allowed = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{allowed}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_ids_are_unique_and_links_lead_somewhere(text):
    read = Page(text)
    ids = [a["id"] for _, a, _ in read.elements if "id" in a]
    assert len(ids) == len(set(ids))
    pointed = [a["href"][1:] for _, a, _ in read.all("a")] + [a["data-copies"] for _, a, _ in read.all("button")
                                                              if "data-copies" in a]  # fmt: skip
    pointed += [a["aria-labelledby"] for _, a, _ in read.elements if "aria-labelledby" in a]
    assert pointed and set(pointed) <= set(ids)


def test_filters_are_native_controls_with_labels_and_need_no_script(text):
    read = Page(text)
    [[_, form, _]] = read.all("form")
    assert "hidden" in form  # until the script can answer: without it the tables stand as they are
    assert [a["name"] for _, a, _ in read.all("select")] == ["model", "device", "method", "metric"]
    labels = [words.split()[0] for _, _, words in read.all("label")]
    assert labels == ["Model", "Device", "Method", "Metric"]
    values = {a["value"] for _, a, _ in read.all("option")}
    assert {"", "tiny-sd3", "sd35", "nf4", "psnr_db", "energy", "d1", "d2"} <= values
    rows = [a for t, a, _ in read.all("tr") if "line" in a.get("class", "")]
    assert len(rows) == 20 and not [a for a in rows if "hidden" in a]
    metrics = {a["data-metric"] for _, a, _ in read.elements if "data-metric" in a}
    assert metrics <= values and len(metrics) == 9


def test_headings_descend_and_tables_have_scopes(text):
    read = Page(text)
    levels = [int(tag[1]) for tag, *_ in read.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 or (before, after) == (3, 4) for before, after in itertools.pairwise(levels))
    assert all(a.get("scope") in ("row", "col") for _, a, _ in read.all("th"))
    assert all(a["alt"] for _, a, _ in read.all("img")) and len(read.all("img")) == 80
    assert all(a.get("role") == "img" and a.get("aria-label") for _, a, _ in read.all("svg"))
    assert [tag for tag, *_ in read.all("header", "nav", "main", "footer")] == ["header", "nav", "main", "footer"]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_is_read_on_its_ground_in_light_and_dark():
    themes = re.findall(r":root \{(.*?)\}", tool.TEMPLATE.read_text(), flags=re.S)
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        colours = {name: value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:])
                   for name, value in re.findall(r"--([\w-]+): (#\w+)", theme)}  # fmt: skip
        for name in ("ink", "soft", "accent", "good", "bad", "warn"):
            assert min(contrast(colours[name], colours[ground]) for ground in ("page", "panel")) >= 4.5, name
        assert contrast(colours["ink"], colours["warn-panel"]) >= 4.5
        assert contrast(colours["edge"], colours["page"]) >= 3  # the frames of controls
    assert all(contrast(label.PAPER, colour) >= 4.5 for colour in (*label.COLOURS.values(), label.SOFT))


def test_names_of_strangers_are_text(cpu, tmp_path):
    path = hostile(cpu, tmp_path / "hostile.zip")
    written = rendered(path)
    read = Page(written)
    assert not read.faults
    assert len(read.all("script")) == 1 and len(read.all("style")) == 1 and len(read.all("img")) == 40
    assert not [a for _, a, _ in read.elements if [name for name in a if name.startswith("on")]]
    assert all(a["src"].startswith("data:") for _, a, _ in read.all("img"))
    shown = {words for _, _, words in read.all("summary")} | {a["value"] for _, a, _ in read.all("option")}
    assert set(HOSTILE) <= shown  # as they are, and nothing of them was evaluated
    for drawn in re.findall(r"<svg.*?</svg>", written, flags=re.S):
        kinds = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(drawn).iter()}
        assert kinds <= {"svg", "title", "rect", "path", "text"}


REPLACEMENTS = (b"NaN", b"null", b"-1", b"{}", b"[]", b'""', b"1e308", b"true", b"9" * 30, b"0", b"=1+1", b"<b>")


def read_or_refusal(path):
    try:
        return reading.read_bundle(path), None
    except DataError as error:
        return None, str(error)


def test_whatever_is_read_can_be_shown(tmp_path):
    """Single values of a bundle are replaced at random: it is refused in a sentence, or its page is whole."""
    kept = {name: synthetic_results.METHODS[name] for name in ("bf16", "rtn-w8a8", "rtn-w4a16")}
    path = bundles.packed(tmp_path / "small", methods=kept, with_images=False)
    members, fields = bundles.members_of(path)
    rng, shown = random.Random(0), 0
    for number in range(150):
        name = rng.choice(sorted(members))
        places = [match.span() for match in re.finditer(rb'[-\d.]+|"[^"]*"|true|null', members[name])]
        start, stop = rng.choice(places)
        changed = members[name][:start] + rng.choice(REPLACEMENTS) + members[name][stop:]
        target = tmp_path / f"{number}.zip"
        target.write_bytes(archive.pack({**members, name: changed}, fields))
        read, refusal = read_or_refusal(target)
        if read is None:
            assert refusal.startswith(f"{target}: ") and "\n" not in refusal
        else:
            assert not Page(page.render(tool.TEMPLATE, [read])).faults
            shown += 1
    assert 10 < shown < 140


def test_bundles_in_any_order_make_the_same_page(cpu, gpu, text):
    assert rendered(gpu, cpu) == text


def test_each_device_has_a_section_and_unknown_machines_are_never_one(cpu, gpu, tmp_path):
    other = bundles.repacked(cpu, tmp_path / "other.zip", lambda members, fields: fields.update(experiment="other"))
    same = bundles.repacked(gpu, tmp_path / "same.zip", lambda members, fields: fields.update(experiment="other"))
    found = page.devices([reading.read_bundle(path) for path in (cpu, other, gpu, same)])
    assert [device.title for device in found] == ["Example CPU, 8 cores", "Example CPU, 8 cores (2)", "Example GPU"]
    assert [len(device.tables) for device in found] == [1, 1, 2]  # the same board, by its identifier
    for device in found:
        for table in device.tables:
            assert len({line.bundle.sha256 for line in table.lines}) == 1


def test_methods_of_one_result_on_two_devices_stand_apart(tmp_path):
    where = {**dict.fromkeys(synthetic_results.METHODS, synthetic_results.CPU), "nf4": synthetic_results.GPU}
    read = reading.read_bundle(bundles.packed(tmp_path / "two", device=where))
    [of_cpu, of_gpu] = page.devices([read])
    assert [line.row["method"] for line in of_gpu.tables[0].lines] == ["nf4"]
    assert "nf4" not in [line.row["method"] for line in of_cpu.tables[0].lines]


def lines_of(path):
    [device] = page.devices([reading.read_bundle(path)])
    return {line.row["method"]: line for line in device.tables[0].lines}


def test_marks_say_what_was_measured_estimated_and_simulated(cpu, gpu, tmp_path):
    assert {name: line.mark for name, line in lines_of(cpu).items()}["rtn-w8a8"] == verdicts.ESTIMATED
    marks = {name: line.mark for name, line in lines_of(gpu).items()}
    assert (marks["rtn-w8a8"], marks["rtn-w4a8"]) == (verdicts.MEASURED, verdicts.SIMULATED)
    failed = bundles.packed(tmp_path / "failed", failures={"nf4": ("oom", "out of memory")})
    assert lines_of(failed)["nf4"].mark == "oom"
    words = " ".join(Page(rendered(failed)).all("main")[0][2].split())
    assert "oom: out of memory" in words and "No PSNR: the reference itself" in words
    assert "simulated: no kernel computes rtn-w4a8 on this device" in words


def test_a_verdict_is_judged_from_the_ratio_and_not_read(gpu, tmp_path):
    claimed = bundles.repacked(gpu, tmp_path / "claims.zip", bundles.edit_row(9, verdict="better"))
    assert lines_of(claimed)["nf4"].told["energy_ratio"] == tables.WORSE
    noisy = bundles.repacked(
        gpu, tmp_path / "noisy.zip", bundles.edit_row(1, energy_ratio_low="0.2", energy_ratio_high="1.9")
    )
    line = lines_of(noisy)["rtn-w8a8"]
    assert line.told["energy_ratio"] == tables.TOO_NOISY and line.figures["energy_ratio"] is None


def test_a_fake_device_is_named_so(tmp_path):
    path = bundles.packed(tmp_path / "fake", device=synthetic_results.FAKE, meter="nvml")
    assert "FAKE" in rendered(path) and "FAKE device" in lines_of(path)["nf4"].label


def test_text_models_are_shown_by_inference(tmp_path):
    folder = tmp_path / "texts"
    listed = synthetic_results.write_tree(folder, model="tiny-gpt2", with_images=False)
    for cell in listed:
        place = "{model}/{method}/{sampling}".format_map(cell)
        record = json.loads((folder / "images" / place / "manifest.json").read_text())
        target = folder / "predictions" / place / "manifest.json"
        target.parent.mkdir(parents=True)
        record |= {"texts": "a.txt", "texts_sha256": "0" * 64, "n_items": 12}
        target.write_text(json.dumps({k: v for k, v in record.items() if k not in ("n_images", "prompts_sha256")}))
    shutil.rmtree(folder / "images")

    def again(folder, **settings):
        return [cell | {"kind": "text"} for cell in listed]

    path = bundles.packed(folder, write=again)
    written = rendered(path)
    assert "J per inference" in written and "Energy per inference" in written and not Page(written).all("img")


# The label


def row(ratio=None, low=None, high=None, **values):
    return {"model": "m", "method": "a", "unit": "image", "status": "ok", "compute": "real", "baseline": False,
            "energy_estimated": False, "margin": 0.05, "energy_j": 1.0, "energy_j_low": 0.9, "energy_j_high": 1.1,
            "energy_ratio": ratio, "energy_ratio_low": low, "energy_ratio_high": high} | values  # fmt: skip


def control(low=0.98, high=1.02):
    return {"energy_control": 1.0, "energy_control_low": low, "energy_control_high": high}


@pytest.mark.parametrize(
    ("ratio", "against", "letter", "why"),
    [
        ((0.45, 0.40, 0.50), control(), "A", ""),
        ((0.45, 0.40, 0.51), control(), "B", ""),  # the point alone would say A
        ((0.60, 0.50, 0.71), control(), "C", ""),
        ((0.85, 0.80, 0.91), control(), "D", ""),
        ((1.00, 0.95, 1.05), control(), "D", ""),
        ((1.30, 1.20, 1.40), control(), "E", ""),
        ((1.00, 0.70, 1.30), control(), None, "the interval reaches from below to above 1.10"),
        ((0.85, 0.80, 0.89), control(0.8, 1.3), None, "the machine was too noisy to tell"),
        ((1.00, 0.95, 1.05), control(0.8, 1.3), None, "the machine was too noisy to tell"),
        ((1.20, 1.15, 1.25), control(0.7, 1.4), None, "the machine was too noisy to tell"),
        ((0.45, 0.40, 0.50), control(1.01, 1.02), None, "the machine was too noisy to tell"),  # it excludes 1
        ((0.45, 0.40, 0.50), {}, None, "the unquantized model was not measured against itself"),
        ((0.45, None, None), control(), None, "the ratio has no interval"),
        ((None, None, None), control(), None, "the ratio has no interval"),
    ],
)
def test_a_class_follows_from_the_interval_and_the_control(ratio, against, letter, why):
    found = verdicts.energy_class(row(*ratio), row(baseline=True, **against))
    assert (found.letter, found.why) == (letter, why)


def test_estimated_joules_have_no_class():
    found = verdicts.energy_class(row(0.4, 0.3, 0.5, energy_estimated=True), row(baseline=True, **control()))
    assert found == verdicts.EnergyClass(None, "the joules are estimated")
    assert verdicts.energy_class(row(baseline=True), row(baseline=True, **control())).letter is None


def words_of(drawn):
    return " ".join(text for text in ElementTree.fromstring(drawn).itertext())


def test_a_label_says_its_figures_and_its_rule(gpu):
    drawn = lines_of(gpu)["rtn-w8a8"].label
    words = words_of(drawn)
    for part in ("0.880 J", "[0.875, 0.885]", "0.800 × the unquantized model", "MEASURED", "Class C", "Example GPU"):
        assert part in words
    assert all(word in words for word in verdicts.RULE.split())
    assert lines_of(gpu)["rtn-w4a8"].label is None  # simulated
    assert "No class: the joules are estimated" in " ".join(words_of(label.draw(
        row(0.4, 0.3, 0.5, energy_estimated=True), None, "here")).split())  # fmt: skip


@pytest.mark.parametrize("ratio", [(0.5, 0.4, 0.6), (9.0, 8.0, 12.0), (1.0, None, None), (3.9, 3.9, 3.9)])
def test_a_label_stays_within_its_frame(ratio):
    name = "a-method-of-a-very-long-name-that-has-no-space-" * 2
    drawn = ElementTree.fromstring(
        label.draw(row(*ratio, method=name), row(baseline=True, **control(0.5, 3.9)), "x " * 400)
    )
    width, height = float(drawn.get("width")), float(drawn.get("height"))
    for element in drawn.iter("{http://www.w3.org/2000/svg}rect"):
        assert 0 <= float(element.get("x")) <= float(element.get("x")) + float(element.get("width")) <= width
    texts = list(drawn.iter("{http://www.w3.org/2000/svg}text"))
    assert all(0 < float(text.get("y")) < height for text in texts)
    assert max(len(text.text) for text in texts) <= label.LETTERS


# The model card


def test_a_snippet_is_what_the_hub_reads(gpu):
    from huggingface_hub import ModelCard

    read = reading.read_bundle(gpu)
    read.configuration["models"]["sd35"] |= {"hub": "stabilityai/stable-diffusion-3.5-medium", "family": "sd3"}
    card = ModelCard(model_card.snippet(read, read.entries[1]))
    assert card.data.base_model == "stabilityai/stable-diffusion-3.5-medium"
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["psnr"].metric_value == pytest.approx(41.2) and results["psnr"].task_type == "text-to-image"
    energy = results["energy-per-image"]
    assert (energy.metric_value, energy.metric_args["high"]) == pytest.approx((0.88, 0.88 * 1.006))
    assert energy.metric_name == "Energy per image (J, measured by nvml)" and energy.dataset_args["steps"] == 20
    assert "| Energy per image (J, measured by nvml) | 0.880 | 0.875 to 0.885 |" in card.text
    unquantized = ModelCard(model_card.snippet(read, read.entries[0]))
    assert unquantized.data.base_model is None and "## Not quantized: bf16" in unquantized.text


def test_a_snippet_of_a_simulated_method_tells_no_cost(cpu):
    read = reading.read_bundle(cpu)
    [entry] = [entry for entry in read.entries if entry.row["method"] == "gptq-w4a8"]
    told = model_card.snippet(read, entry)
    assert "simulated" in told and "energy" not in told.lower() and "psnr" in told


@pytest.mark.parametrize("name", HOSTILE)
def test_a_snippet_of_a_hostile_name_is_text(cpu, tmp_path, name):
    read = reading.read_bundle(bundles.repacked(cpu, tmp_path / "h.zip", bundles.rename("rtn-w8a8", name)))
    told = model_card.snippet(read, read.entries[1])
    _, front, section = re.split(r"^---$", told, maxsplit=2, flags=re.M)
    assert yaml.safe_load(front)["model-index"][0]["name"] == f"tiny-sd3 {name}"
    heading = section.strip().splitlines()[0]
    assert not re.search(r"[<>]|(?<!\\)[`\[\]|]", heading.replace("&lt;", "").replace("&gt;", ""))


# The command


def test_the_command_writes_the_page_and_labels_under_safe_names(cpu, gpu, tmp_path, capsys):
    evil = bundles.repacked(cpu, tmp_path / "evil.zip", bundles.rename("tiny-sd3", "../../x", "model"))
    tool.main([str(evil), str(gpu), "--output", str(tmp_path / "out/book.html"), "--label", "rtn-w8a8"])
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["book.html", "label-cpu-study-.._.._x-steps-20-rtn-w8a8.svg",
                       "label-gpu-study-sd35-steps-20-rtn-w8a8.svg"]  # fmt: skip
    assert (tmp_path / "out/book.html").read_text() == rendered(evil, gpu)
    assert "2 bundles" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "words"), [("w9", "no bundle has the method 'w9'"), ("gptq-w4a8", "no energy was read of 'gptq-w4a8'")]
)
def test_a_label_that_cannot_be_drawn_is_refused_and_nothing_is_written(cpu, tmp_path, method, words):
    with pytest.raises(DataError, match=words):
        tool.main([str(cpu), "--output", str(tmp_path / "book.html"), "--label", method])
    assert not list(tmp_path.iterdir())


def test_a_bad_bundle_ends_it_unless_it_is_to_be_skipped(cpu, tmp_path, capsys):
    bad = tmp_path / "bad.zip"
    bad.write_text("<script>")
    words = [str(bad), str(cpu), "--output", str(tmp_path / "book.html")]
    with pytest.raises(DataError, match=r"bad\.zip: not a ZIP file .*--skip-bad leaves such bundles out"):
        tool.main(words)
    assert not (tmp_path / "book.html").exists()
    tool.main([*words, "--skip-bad"])
    assert "left out:" in capsys.readouterr().err
    assert "1 malformed bundle was left out" in (tmp_path / "book.html").read_text()
    with pytest.raises(DataError, match="there is no bundle to show"):
        tool.main([str(bad), "--skip-bad", "--output", str(tmp_path / "none.html")])


def test_the_same_bundle_counts_once(cpu, tmp_path, capsys):
    shutil.copy(cpu, tmp_path / "copy.zip")
    tool.main([str(cpu), str(tmp_path / "copy.zip"), "--output", str(tmp_path / "book.html")])
    assert "the same bundle as" in capsys.readouterr().err
    assert (tmp_path / "book.html").read_text() == rendered(cpu)


def test_what_ships_is_read_by_default_and_is_whole(tmp_path, monkeypatch):
    shipped = sorted(tool.SHIPPED.glob("*.zip"))
    for path in shipped:
        read = reading.read_bundle(path)
        assert not any(entry.row["device_fake"] for entry in read.entries)
        assert not [commit for commit in read.provenance["commits"] if commit.endswith("-dirty")]
    monkeypatch.setattr(tool, "SHIPPED", tmp_path)
    with pytest.raises(DataError, match=r"pack a result with workflow_scripts/tools/bundle\.py"):
        tool.main(["--output", str(tmp_path / "book.html")])


# In a browser


def in_chromium(path, *options):
    """The page's elements after its script has run, as HTML."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", *options,
               "--dump-dom", path.as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_script_runs_under_the_pages_policy_and_hostile_names_do_not(cpu, tmp_path):
    path = tmp_path / "book.html"
    path.write_text(rendered(hostile(cpu, tmp_path / "hostile.zip")))
    after = Page(in_chromium(path))
    [count] = [words for _, a, words in after.elements if a.get("id") == "count"]
    assert count == "10 of 10 rows match."
    [[_, form, _]] = after.all("form")
    assert "hidden" not in form and len(after.all("script")) == 1


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_filters_and_sorting_work_in_a_browser(text, tmp_path):
    """A script that chooses as a person does runs in a copy of the page without its policy."""
    choose = """<script>
    const form = document.forms[0];
    const pick = (name, value) => { form.elements[name].value = value; form.dispatchEvent(new Event("change")); };
    const rows = () => [...document.querySelectorAll("tr.line")].filter((row) => row.offsetParent);
    const seen = [];
    const methods = (rows) => [...rows].map((row) => row.dataset.method);
    const note = (name) => seen.push([name, document.querySelector("#count").textContent, methods(rows())]);
    pick("model", "sd35"); note("model");
    pick("method", "nf4"); note("method");
    pick("device", "d1"); note("none");
    form.reset(); form.dispatchEvent(new Event("change"));
    pick("metric", "psnr_db");
    const table = document.querySelector("table");
    seen.push(["metric", table.querySelectorAll("thead th:not([hidden])").length]);
    pick("metric", "");
    const psnr = table.querySelector("th[data-metric=psnr_db] button");
    psnr.click();
    seen.push(["rising", methods(table.tBodies[0].rows)]);
    psnr.click();
    seen.push(["falling", methods(table.tBodies[0].rows)]);
    location.hash = document.querySelector("tr.line a").hash;
    window.dispatchEvent(new Event("hashchange"));
    seen.push(["open", document.getElementById(location.hash.slice(1)).open]);
    seen.push(["wide", document.documentElement.scrollWidth > innerWidth]);
    document.body.replaceChildren(JSON.stringify(seen));
    </script></body>"""
    path = tmp_path / "copy.html"
    without = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    path.write_text(without.replace("</body>", choose))
    [[*_, body]] = Page(in_chromium(path, "--window-size=500,900")).all("body")
    seen = {name: rest for name, *rest in json.loads(body)}
    assert seen["model"][0] == "10 of 20 rows match." and len(seen["model"][1]) == 10
    assert seen["method"] == ["1 of 20 rows match.", ["bf16", "nf4"]]  # ratios refer to the unquantized model
    assert seen["none"] == ["0 of 20 rows match.", []]
    assert seen["metric"] == [2]
    assert seen["rising"][0][0] == "rtn-w2a16" and seen["rising"][0][-1] == "bf16"  # it has no PSNR
    assert seen["falling"][0][0] == "rtn-w8a8" and seen["falling"][0][-1] == "bf16"
    assert seen["open"] == [True] and seen["wide"] == [False]
