"""A bundle holds what a result says and nothing of its maker; one of a stranger is refused unless it is whole."""

import csv
import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import bundles
import numpy as np
import pytest
import synthetic_results
from PIL import Image, PngImagePlugin

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT, describe_files
from quantwatt.config import experiment as configuration
from quantwatt.report.book import LARGEST_SIDE, MOST_BYTES, archive, packing, parsing, pictures, reading, traces
from quantwatt.report.book.privacy import Privacy
from tools import bundle as tool

ROOT = Path(__file__).parents[2]
SUMMARY, CONFIGURATION = "tables/summary.csv", "configuration.json"
MEASUREMENT = "cells/0001/measurement.json"  # of rtn-w8a8
IMAGE = "cells/0001/image-0.png"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return bundles.finished(tmp_path_factory.mktemp("results") / "demo")


@pytest.fixture(scope="module")
def whole(result):
    tool.main(["--results", str(result), "--date", bundles.DATE])
    return result / "bundle.zip"


# What is packed


def test_a_bundle_holds_tables_settings_measurements_traces_and_images(whole):
    read = reading.read_bundle(whole)
    assert read.manifest["experiment"] == "demo" and read.manifest["date"] == bundles.DATE
    assert [entry.row["method"] for entry in read.entries] == list(synthetic_results.METHODS)
    entry = read.entries[1]
    assert entry.row["energy_j"] == pytest.approx(0.88) and entry.measurement["energy_j"]["value"] == 0.88
    assert entry.row["psnr_db_low"] < entry.row["psnr_db"] < entry.row["psnr_db_high"]
    assert {prompt["prompt"] for prompt in entry.prompts} == {prompt["prompt"] for prompt in read.entries[5].prompts}
    assert len(entry.images) == 4 and Image.open(io.BytesIO(entry.images[0])).size == (64, 64)
    assert read.provenance["commits"] == ["0123456789ab"] and read.provenance["versions"]["torch"] == ["2.13.0"]
    members, _ = bundles.members_of(whole)
    assert {"tables/layers.csv", "tables/recommendation.json", "cells/0000/power.csv"} <= set(members)
    listed = {file["file"]: file["sha256"] for file in json.loads(members["hashes.json"])["results"]}
    assert "measurements/tiny-sd3/nf4/steps-20/power.csv" in listed and len(listed) == 3 + 10 * (3 + 5 + 1)
    assert not [name for name in members if "safetensors" in name] and whole.stat().st_size < MOST_BYTES


def test_equal_results_are_equal_bytes(whole, result, tmp_path):
    again = tmp_path / "elsewhere" / "demo"
    shutil.copytree(result, again, ignore=shutil.ignore_patterns("bundle.zip"))
    tool.main(["--results", str(again), "--date", bundles.DATE])
    assert (again / "bundle.zip").read_bytes() == whole.read_bytes()


def test_the_date_is_that_of_the_last_measurement(result, tmp_path):
    again = tmp_path / "demo"
    shutil.copytree(result, again)
    path = again / "measurements/tiny-sd3/nf4/steps-20/measurement.json"
    os.utime(path, (4e9, 4e9))
    assert packing.measured_on(packing.read_result(again, "demo", None)) == "2096-10-02"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"measured": {"at": "2026-11-30 13:20 UTC", "seconds": 9}})
    )
    assert packing.measured_on(packing.read_result(again, "demo", None)) == "2026-11-30"


def test_settings_are_held_against_the_experiment(result):
    settings = configuration.load_experiment("embedded")
    with pytest.raises(DataError, match="method 'bf16' is not in the experiment 'embedded'"):
        packing.read_result(result, "embedded", settings)


def test_an_unfinished_result_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(DataError, match=r"summary\.csv: the file does not exist; run the experiment"):
        tool.main(["--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("date", ["today", "2026-02-30", "2026-1-1"])
def test_a_day_that_is_none_is_refused(result, tmp_path, date):
    with pytest.raises(DataError, match=f"--date: '{date}' is no day of the form YYYY-MM-DD"):
        tool.main(["--results", str(result), "--date", date, "--output", str(tmp_path / "a.zip")])


def test_a_table_of_an_earlier_version_is_refused(result, tmp_path):
    again = tmp_path / "demo"
    shutil.copytree(result, again, ignore=shutil.ignore_patterns("bundle.zip"))
    path = again / "tables/summary.csv"
    path.write_text(path.read_text().replace(",unit,", ",was_unit,", 1))
    with pytest.raises(DataError, match=r"summary\.csv: the column unit is missing; run snakemake again"):
        tool.main(["--results", str(again)])


def test_tables_that_are_older_than_a_measurement_are_refused(result, tmp_path):
    again = tmp_path / "demo"
    shutil.copytree(result, again, ignore=shutil.ignore_patterns("bundle.zip"))
    path = again / "measurements/tiny-sd3/nf4/steps-20/measurement.json"
    record = json.loads(path.read_text())
    record["energy_j"]["value"] *= 1.01
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="nf4, steps-20: energy_j is 1.24, but its measurement says 1.25"):
        tool.main(["--results", str(again)])
    assert not (again / "bundle.zip").exists()


def test_images_become_fewer_and_smaller_until_all_fits(result, monkeypatch):
    read = packing.read_result(result, "demo", None)
    nobody = Privacy(None, (), ())
    monkeypatch.setattr(packing, "MOST_BYTES", 150_000)
    small = packing.bundle(read, nobody, bundles.DATE)
    with zipfile.ZipFile(io.BytesIO(small)) as archived:
        images = [name for name in archived.namelist() if name.endswith(".png")]
    assert len(small) <= 150_000 and 0 < len(images) < 40
    monkeypatch.setattr(packing, "MOST_BYTES", 10_000)
    with pytest.raises(DataError, match="without any image, and at most 10,000 are allowed"):
        packing.bundle(read, nobody, bundles.DATE)


def test_large_images_are_shrunk_and_lose_what_their_files_say(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "someone")
    pixels = np.random.default_rng(0).integers(0, 255, (400, 300, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=text)
    image = {"file": "a.png"} | describe_files(tmp_path, ["a.png"])["a.png"]
    small = pictures.small(tmp_path / "manifest.json", image, 128)
    assert Image.open(io.BytesIO(small)).size == (96, 128) and b"someone" not in small


def test_a_trace_keeps_its_mean_and_range_in_few_spans(tmp_path):
    rows = [f"{i * 0.01:.2f},{100 + (i % 2) * 10},,method,0,0" for i in range(10_000)] + ["0.005,9999,,method,1,0"]
    (tmp_path / "power.csv").write_text("t_s,watts,sensor_s,configuration,process,block\n" + "\n".join(rows))
    columns = dict.fromkeys(traces.COLUMNS, float)
    spans = parsing.read_csv(traces.downsample(tmp_path / "power.csv"), "trace", columns, traces.COLUMNS)
    assert len(spans) == traces.SPANS and sum(span["samples"] for span in spans) == 10_000
    assert all(s["watts_low"] == 100 and s["watts_high"] == 110 and abs(s["watts"] - 105) < 0.2 for s in spans)
    assert traces.downsample(tmp_path / "missing.csv") is None


# What names its maker


HERE = Privacy(Path("/home/mallory"), ["mallory"], ["node-17", "node-17.example.org"])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/home/mallory/models/sd3", "…/sd3"),
        ("a file of /home/mallory", "a file of …"),
        ("cannot open '/scratch/x y.bin'", "cannot open '…/x y.bin'"),
        ("/mnt/disk/a.safetensors: truncated", "…/a.safetensors: truncated"),
        (f"{PROJECT}/resources/prompts/a.txt", "resources/prompts/a.txt"),
        ("~/models/sd3", "…/sd3"),
        ("file:///srv/models/sd3", "…/sd3"),
        (r"C:\Users\mallory\sd3", "…/sd3"),
        ("https://me:secret@hub.example.org/a/b", "https://***@hub.example.org/a/b"),
        ("counter of /sys/class/powercap/intel-rapl:0", "counter of /sys/class/powercap/intel-rapl:0"),
        ("0.3 J/image and/or w4a8 / w8", "0.3 J/image and/or w4a8 / w8"),
        ("org/model at resources/models/tiny-sd3", "org/model at resources/models/tiny-sd3"),
    ],
)
def test_absolute_paths_and_passwords_are_stripped(text, left):
    assert HERE.without_paths(text) == left
    assert "mallory" not in HERE.without_paths(text)


def test_names_of_host_and_user_are_replaced_in_reasons_and_refused_elsewhere():
    record = {"reason": "no GPU on node-17.example.org for Mallory", "ok": ["w8", 3, None]}
    assert HERE.cleaned(record, "a.json")["reason"] == "no GPU on [host] for [user]"
    for wrong, where in ({"method": "gptq-mallory"}, "a.json: method"), ({"node-17": 1}, "a.json: node-17"):
        with pytest.raises(DataError, match=rf"{where}: holds '(mallory|node-17)', the name of this (user|host)"):
            HERE.cleaned(wrong, "a.json")
    assert Privacy(None, ["mallory"], [], ["Mallory"]).cleaned({"method": "mallory"}, "") == {"method": "mallory"}
    assert HERE.cleaned({"method": "mallorys-w8"}, "") == {"method": "mallorys-w8"}  # another word


def test_ordinary_names_of_users_and_hosts_are_words():
    ordinary = Privacy(None, ["root", "me"], ["localhost", "gpu"])
    assert ordinary.cleaned({"name": "root of gpu, me"}, "") == {"name": "root of gpu, me"}


def test_no_string_of_a_bundle_names_the_machine(tmp_path, monkeypatch):
    folder = bundles.finished(
        tmp_path / "demo", failures={"rtn-w4a8": ("oom", "worker-9: /home/mallory/x.bin too large")}
    )
    path = folder / "checkpoints/tiny-sd3/bf16/manifest.json"
    record = json.loads(path.read_text())
    record["model_settings"] = {"family": "sd3", "path": "/home/mallory/models/sd3"}
    path.write_text(json.dumps(record))
    monkeypatch.setattr("platform.node", lambda: "worker-9.cluster")
    monkeypatch.setenv("HOME", "/home/mallory")
    monkeypatch.setenv("USER", "mallory")
    tool.main(["--results", str(folder), "--date", bundles.DATE])
    members, fields = bundles.members_of(folder / "bundle.zip")
    text = b"\n".join([json.dumps(fields).encode(), *members.values()])
    assert not [word for word in (b"mallory", b"worker-9", b"/home", str(tmp_path).encode()) if word in text]
    assert json.loads(members[CONFIGURATION])["models"]["tiny-sd3"] == {"family": "sd3", "path": "…/sd3"}
    [row] = [e.row for e in reading.read_bundle(folder / "bundle.zip").entries if e.row["method"] == "rtn-w4a8"]
    assert row["reason"] == "[host]: …/x.bin too large"


def test_a_method_with_the_hosts_name_is_refused(result, tmp_path, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "gptq-w4a8")
    output = ["--results", str(result), "--output", str(tmp_path / "out.zip")]
    with pytest.raises(
        DataError, match="holds 'gptq-w4a8', the name of this host; rename it, or pass --keep gptq-w4a8"
    ):
        tool.main(output)
    assert not list(tmp_path.iterdir())
    tool.main([*output, "--keep", "gptq-w4a8"])
    assert (tmp_path / "out.zip").exists()


# What a stranger may send: the file


def refused(path, *words):
    """The one sentence with which a bundle is refused; it names the file."""
    with pytest.raises(DataError) as caught:
        reading.read_bundle(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: ") and "\n" not in sentence and sentence.endswith(".")
    assert all(word in sentence for word in words), sentence


def patched(data, place, value):
    return data[:place] + value + data[place + len(value) :]


def central(data, name):
    """Offset of an entry's header in the directory."""
    return data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))


def overlapping(data):
    """Two entries of the directory that unpack the same bytes, as of a bomb without ratio."""
    place = central(data, "provenance.json")
    first = struct.unpack_from("<L", data, central(data, "hashes.json") + 42)[0]
    return patched(data, place + 42, struct.pack("<L", first))


BYTES = {
    "text": (lambda data: b"a,b\n1,2\n" * 99, "not a ZIP file"),
    "empty": (lambda data: b"", "not a ZIP file"),
    "truncated": (lambda data: data[: len(data) // 2], "not a ZIP file"),
    "a page in front": (lambda data: b"<html><script>alert(1)</script>" + data, "does not follow the entry before it"),
    "something behind": (lambda data: data + b"#!/bin/sh\n", "holds something before, between or after"),
    "too large": (lambda data: data + bytes(MOST_BYTES), "a bundle has at most 5,000,000"),
    "overlapping entries": (overlapping, "provenance.json"),
    "a directory elsewhere": (
        lambda data: patched(data, len(data) - 6, struct.pack("<L", 7)),
        "does not follow the entry",
    ),
    "a flipped bit": (lambda data: patched(data, data.index(b"IDAT") + 99, b"\x00\xff\x13"), "cannot be unpacked"),
    "encrypted": (lambda data: patched(data, central(data, "hashes.json") + 8, b"\x01\x00"), "is encrypted"),
    "a lying size": (lambda data: patched(data, central(data, SUMMARY) + 24, struct.pack("<L", 9)), SUMMARY),
    "another kind of compression": (lambda data: patched(data, central(data, SUMMARY) + 10, b"\x0e\x00"), "compressed"),
    "another name in front": (
        lambda data: data.replace(b"hashes.json", b"hAshes.json", 1),
        "in directory 'hashes.json' and header",
    ),
}


@pytest.mark.parametrize("kind", BYTES)
def test_a_file_that_is_no_whole_bundle_is_refused(whole, tmp_path, kind):
    change, words = BYTES[kind]
    path = tmp_path / "hostile.zip"
    path.write_bytes(change(whole.read_bytes()))
    refused(path, words)


def info(name, mode=stat.S_IFREG | 0o644, kind=zipfile.ZIP_DEFLATED):
    made = zipfile.ZipInfo(name, archive.DATE)
    made.create_system, made.external_attr, made.compress_type = 3, mode << 16, kind
    return made


def with_extra_field(entry, data):
    if entry.filename == SUMMARY:
        entry.extra = struct.pack("<HH4s", 0xCAFE, 4, b"text")
    return entry, data


BOMB = bytes(200_000_000)
ENTRIES = {
    "a way out": ([(info("../../evil.json"), b"{}")], '"../../evil.json": no entry of a bundle'),
    "an absolute path": ([(info("/etc/cron.d/evil"), b"* * * * *")], "no entry of a bundle"),
    "a path of Windows": ([(info("cells\\0000\\image-9.png"), b"")], "no entry of a bundle"),
    "an entry of its own": ([(info("run.py"), b"import os")], "no entry of a bundle"),
    "a name with a zero": ([(info("cells/0000/image-9.png\x00.exe"), b"")], "image-9.png"),
    "digits of another script": ([(info("cells/\u0660\u0660\u0660\u0660/power.csv"), b"")], "no entry of a bundle"),
    "a link": ([(info("cells/0009/image-9.png", stat.S_IFLNK | 0o777), b"/etc/passwd")], "is a link, a folder"),
    "a device": ([(info("cells/0009/image-9.png", stat.S_IFCHR | 0o644), b"")], "is a link, a folder"),
    "an entry twice": ([(info(SUMMARY), b"model\n")], "is there twice"),
    "a bomb": ([(info("cells/0009/image-9.png"), BOMB)], "unpacks to 200,000,000 bytes"),
    "many entries": (
        [(info(f"cells/{i:04d}/power.csv"), b"") for i in range(1000, 9999)]
        + [(info(f"cells/{i:04d}/image-9.png"), b"") for i in range(1000, 3000)],
        "entries; a bundle has at",
    ),
    "an entry that is not listed": ([(info("cells/0009/image-9.png"), b"")], "is there, but not listed"),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_an_entry_that_no_bundle_has_is_refused(whole, tmp_path, kind):
    extra, words = ENTRIES[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that is there twice
        refused(bundles.rezipped(whole, tmp_path / "hostile.zip", extra=extra), words)
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.zip"]


def test_many_small_entries_together_are_limited(whole, tmp_path):
    extra = [(info(f"cells/{i:04d}/power.csv"), bytes(200_000)) for i in range(10, 400)]
    refused(bundles.rezipped(whole, tmp_path / "hostile.zip", extra=extra), "unpack to more than 64,000,000 bytes")


def test_extra_fields_and_comments_are_refused(whole, tmp_path):
    refused(
        bundles.rezipped(whole, tmp_path / "a.zip", with_extra_field), SUMMARY, "holds more than a bundle's entries"
    )
    shutil.copy(whole, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as archived:
        archived.comment = b"<script>"
    refused(tmp_path / "b.zip", "holds something before, between or after")


def test_a_changed_entry_is_found_by_its_hash(whole, tmp_path):
    changed = bundles.rezipped(whole, tmp_path / "a.zip", lambda i, d: (i, d.replace(b",0.88,", b",0.11,")))
    refused(changed, SUMMARY, "its sha256 is not the manifest's")
    missing = bundles.rezipped(whole, tmp_path / "b.zip", lambda i, d: None if i.filename == IMAGE else (i, d))
    refused(missing, IMAGE, "is listed, but not there")
    without = bundles.rezipped(whole, tmp_path / "c.zip", lambda i, d: None if "manifest" in i.filename else (i, d))
    refused(without, "manifest.json: missing")


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    refused(tmp_path, "is no file")
    refused(tmp_path / "none.zip", "the file does not exist")


# What a stranger may send: JSON


def raw(name, text):
    def edit(members, fields):
        members[name] = text if isinstance(text, bytes) else text.encode()

    return edit


def in_text(name, old, new):
    def edit(members, fields):
        assert old in members[name].decode()
        members[name] = members[name].decode().replace(old, new, 1).encode("utf-8", "surrogatepass")

    return edit


def of_fields(**changed):
    return lambda members, fields: fields.update(changed)


JSON = {
    "NaN": (in_text(MEASUREMENT, '"level": 0.97', '"level": NaN'), MEASUREMENT, "NaN is not a number"),
    "infinity": (in_text(MEASUREMENT, '"level": 0.97', '"level": 1e999'), MEASUREMENT, "too large a number"),
    "a huge number": (in_text(MEASUREMENT, '"level": 0.97', '"level": 1e200'), MEASUREMENT, "too large a number"),
    "a long number": (in_text(MEASUREMENT, '"level": 0.97', f'"level": {"9" * 5000}'), MEASUREMENT, "64 bits"),
    "deep nesting": (raw(CONFIGURATION, "[" * 500_000), CONFIGURATION, "nested too deeply"),
    "closed nesting": (
        bundles.edit_json(CONFIGURATION, lambda v: v["methods"].update(bf16=json.loads('{"a":' * 40 + "1" + "}" * 40))),
        CONFIGURATION,
        "nested too deeply",
    ),
    "a key twice": (
        in_text(CONFIGURATION, '"baseline"', '"baseline": 1, "baseline"'),
        CONFIGURATION,
        "a key is there twice",
    ),
    "no JSON": (raw("provenance.json", "import os"), "provenance.json", "not JSON"),
    "no UTF-8": (raw("provenance.json", b'{"a": "\xff"}'), "provenance.json", "not JSON"),
    "half a character": (in_text(CONFIGURATION, '"bf16"', '"\\ud800"'), CONFIGURATION, "cannot be shown"),
    "a turned name": (in_text(CONFIGURATION, '"bf16"', '"bf\u202e61"'), CONFIGURATION, "cannot be shown"),
    "a bell": (in_text(CONFIGURATION, '"bf16"', '"\\u0007"'), CONFIGURATION, "cannot be shown"),
    "a long text": (in_text(CONFIGURATION, '"bf16"', f'"{"a" * 9999}"'), CONFIGURATION, "9,999 characters"),
    "an unknown key": (of_fields(run="rm -rf"), "manifest.json", "unknown key 'run'"),
    "no date": (of_fields(date="today"), "manifest.json", "date"),
    "a key that is missing": (
        bundles.edit_json(CONFIGURATION, lambda v: v.pop("shown") and None),
        CONFIGURATION,
        "shown",
    ),
    "another type": (bundles.edit_json(MEASUREMENT, lambda v: v.update(device="cpu")), MEASUREMENT, "device"),
    "no settings": (
        bundles.edit_json(CONFIGURATION, lambda v: v["methods"].pop("nf4") and None),
        SUMMARY,
        "its method",
    ),
    "a list of methods": (bundles.edit_json(CONFIGURATION, lambda v: v.update(methods=[1])), CONFIGURATION, "methods"),
    "another cell": (
        bundles.edit_json(MEASUREMENT, lambda v: v.update(method="nf4")),
        MEASUREMENT,
        "is not that of row 2",
    ),
    "other joules": (
        bundles.edit_json(MEASUREMENT, lambda v: v["energy_j"].update(value=0.5)),
        MEASUREMENT,
        "energy_j",
    ),
    "joules of a text": (
        bundles.edit_json(MEASUREMENT, lambda v: v["latency_s"].update(median="1")),
        MEASUREMENT,
        "latency_s",
    ),
    "an estimate as measured": (
        bundles.edit_json(MEASUREMENT, lambda v: v.update(estimated=False)),
        MEASUREMENT,
        "meter",
    ),
    "no measurement": (lambda members, fields: members.pop(MEASUREMENT), MEASUREMENT, "missing"),
    "no hashes": (lambda members, fields: members.pop("hashes.json"), "hashes.json", "missing"),
    "a wrong hash of a result": (
        bundles.edit_json("hashes.json", lambda v: v["results"][0].update(sha256="0")),
        "hashes.json",
        "sha256",
    ),
    "no recommendation": (raw("tables/recommendation.json", "3"), "tables/recommendation.json", "a list"),
}


@pytest.mark.parametrize("kind", JSON)
def test_json_that_says_something_else_is_refused(whole, tmp_path, kind):
    edit, entry, words = JSON[kind]
    refused(bundles.repacked(whole, tmp_path / "hostile.zip", edit), entry, words)


def test_another_version_is_refused_with_what_to_do(whole, tmp_path):
    members, fields = bundles.members_of(whole)
    for key, value, words in (("version", 2, "reads version 1"), ("format", "zip", "no bundle of quantwatt")):
        data = archive.pack(members, fields | {key: value})
        (tmp_path / "other.zip").write_bytes(data)
        refused(tmp_path / "other.zip", words)


# What a stranger may send: tables


def rows_of(change):
    def edit(members, fields):
        rows = list(csv.DictReader(io.StringIO(members[SUMMARY].decode())))
        bundles.write_rows(members, change(rows))

    return edit


TABLES = {
    "NaN": (bundles.edit_row(1, energy_ratio="nan"), "energy_ratio: 'nan' is no number"),
    "a huge number": (bundles.edit_row(1, fid="1e300"), "fid: '1e300' is no number, or too large"),
    "no number": (bundles.edit_row(1, size_mb="=1+1"), "size_mb: '=1+1' is no number"),
    "negative joules": (bundles.edit_row(1, energy_ratio="-1", energy_ratio_low="-2"), "energy_ratio: is not positive"),
    "a value outside its interval": (bundles.edit_row(1, energy_ratio="0.2"), "energy_ratio: does not lie within"),
    "an interval without a value": (bundles.edit_row(1, psnr_db=""), "psnr_db: has an interval and no value"),
    "a simulated method with joules": (bundles.edit_row(1, compute="simulated"), "never timed"),
    "joules of no meter": (bundles.edit_row(1, meter=""), "energy_j: has no meter"),
    "no status": (bundles.edit_row(1, status="<b>"), "status or compute"),
    "no name": (bundles.edit_row(1, method=""), "method: should be a printable name"),
    "a long name": (bundles.edit_row(1, method="a" * 101), "method: should be a printable name"),
    "a name of two lines": (bundles.edit_row(1, method="a\nb"), "method: should be a printable name"),
    "a turned name": (bundles.edit_row(1, method="a\u202eb"), "cannot be shown"),
    "neither true nor false": (bundles.edit_row(1, baseline="1"), "baseline: '1' is neither true nor false"),
    "a row twice": (rows_of(lambda rows: [*rows, rows[1]]), "row 11: is there twice"),
    "two baselines": (bundles.edit_row(1, baseline="true"), "is a second baseline"),
    "no rows": (lambda m, f: m.update({SUMMARY: m[SUMMARY].splitlines(True)[0]}), "0 rows; a bundle has 1 to"),
    "a column less": (
        rows_of(lambda rows: [{k: v for k, v in r.items() if k != "model"} for r in rows]),
        "the column model",
    ),
    "a column twice": (
        lambda m, f: m.update({SUMMARY: m[SUMMARY].replace(b",fid,", b",psnr_db,", 1)}),
        "a column is there twice",
    ),
    "a short row": (lambda m, f: m.update({SUMMARY: m[SUMMARY] + b"tiny-sd3,a\n"}), "2 fields instead of"),
    "a long field": (lambda m, f: m.update({SUMMARY: m[SUMMARY] + b"a" * 200_000}), "not a table in CSV"),
    "an open quotation": (lambda m, f: m.update({SUMMARY: m[SUMMARY] + b'"'}), "not a table in CSV"),
    "no table": (lambda m, f: m.pop(SUMMARY), "missing"),
    "a row for no cell": (rows_of(lambda rows: rows[:-1]), "the summary has no such row"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_that_no_result_has_is_refused(whole, tmp_path, kind):
    edit, words = TABLES[kind]
    refused(bundles.repacked(whole, tmp_path / "hostile.zip", edit), words)


@pytest.mark.parametrize("name", ["tables/layers.csv", "cells/0001/power.csv"])
def test_the_other_tables_are_read_as_strictly(whole, tmp_path, name):
    refused(bundles.repacked(whole, tmp_path / "hostile.zip", raw(name, "t_s,watts\n1,x\n")), name, "is missing")


# What a stranger may send: images


def png(size=(8, 8), **settings):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG", **settings)
    return buffer.getvalue()


def claiming(width, height):
    """A PNG whose header claims a size: 60,000 squared pixels would take 10 GB."""
    header = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    rest = png()[8 + 25 :]
    return png()[:8] + struct.pack(">L", 13) + chunk + struct.pack(">L", zlib.crc32(chunk)) + rest


def as_format(name):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, name)
    return buffer.getvalue()


def animated():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


IMAGES = {
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "not a PNG image"),
    "a page": (b"<!DOCTYPE html><script>alert(1)</script>", "not a PNG image"),
    "GIF": (as_format("GIF"), "not a PNG image"),
    "TIFF": (as_format("TIFF"), "not a PNG image"),
    "many pixels": (claiming(9_000, 9_000), "9000×9000 pixels; at most"),
    "a bomb": (claiming(60_000, 60_000), "not a PNG image"),
    "no pixels": (claiming(0, 8), IMAGE),
    "a side too long": (png((LARGEST_SIDE + 1, 8)), f"{LARGEST_SIDE + 1}×8 pixels; at most {LARGEST_SIDE}"),
    "a truncated PNG": (png((200, 200))[:80], "not a PNG image"),
    "nothing": (b"", "not a PNG image"),
    "an animation": (animated(), "is animated"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_that_is_none_is_refused(whole, tmp_path, kind):
    data, words = IMAGES[kind]
    refused(bundles.repacked(whole, tmp_path / "hostile.zip", raw(IMAGE, data)), IMAGE, words)


def test_what_hides_in_an_image_is_not_kept(whole, tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "<script>alert(1)</script>")
    hiding = png(pnginfo=text, icc_profile=b"<script>alert(2)</script>") + b"<script>alert(3)</script>"
    read = reading.read_bundle(bundles.repacked(whole, tmp_path / "polyglot.zip", raw(IMAGE, hiding)))
    kept = read.entries[1].images[0]
    assert b"script" not in kept and Image.open(io.BytesIO(kept)).getpixel((0, 0)) == (255, 0, 0)


def test_images_belong_to_prompts(whole, tmp_path):
    gap = bundles.repacked(whole, tmp_path / "a.zip", lambda members, fields: members.pop(IMAGE))
    refused(gap, "cells/0001", "an image is missing")
    more = bundles.repacked(whole, tmp_path / "b.zip", raw("cells/0001/image-4.png", png()))
    refused(more, "cells/0001", "5 images, but configuration.json has 4 prompts")


def test_what_is_refused_is_one_sentence_of_the_program(tmp_path):
    (tmp_path / "text.zip").write_text("no bundle")
    command = [
        sys.executable,
        "workflow_scripts/tools/book.py",
        str(tmp_path / "text.zip"),
        "--output",
        str(tmp_path / "a.html"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert "text.zip: not a ZIP file" in done.stderr and not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("tool_name", ["bundle", "book"])
def test_a_tool_explains_itself(tool_name):
    command = [sys.executable, f"workflow_scripts/tools/{tool_name}.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Example:" in done.stdout
