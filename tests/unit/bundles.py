"""Finished results of made-up numbers, their bundles, and bundles as a stranger might change them."""

import csv
import io
import json
import zipfile
from pathlib import Path

import synthetic_results

from quantwatt.artifacts.manifest import write_json
from quantwatt.report import cells, layer_table, recommendation, tables
from quantwatt.report.book import archive, parsing
from tools import bundle

DATE = "2026-11-30"


def finished(folder, write=synthetic_results.write_tree, metrics=synthetic_results.METRICS, **settings):
    """A result with its tables, as a run leaves it; its folder."""
    folder = Path(folder)
    listed = write(folder, **settings)
    records = cells.read_cells(folder, listed, metrics)
    summary = tables.summary_table(records, settings.get("baseline", synthetic_results.BASELINE), {})
    tables.write_table(folder / "tables/summary.csv", summary)
    tables.write_table(folder / "tables/layers.csv", layer_table.layers_table(records))
    found = recommendation.recommend(tables.read_table(folder / "tables/summary.csv"))
    write_json(folder / "tables/recommendation.json", found)
    return folder


def packed(folder, **settings):
    """The bundle of a finished result; its path."""
    finished(folder, **settings)
    bundle.main(["--results", str(folder), "--date", DATE])
    return Path(folder) / "bundle.zip"


def members_of(path):
    """{name: contents} of a bundle without its manifest, and the manifest's own fields."""
    manifest, members, _ = archive.unpack(path)
    return members, {key: value for key, value in manifest.items() if key not in ("format", "version", "files")}


def repacked(path, target, edit):
    """Write a bundle whose hashes are right, with members and fields as `edit(members, fields)` leaves them."""
    members, fields = members_of(path)
    edit(members, fields)
    target.write_bytes(archive.pack(members, fields))
    return target


def edit_json(name, change):
    """An edit that changes a member's parsed JSON in place, or replaces it by what `change` returns."""

    def edit(members, fields):
        value = json.loads(members[name])
        changed = change(value)
        members[name] = parsing.as_json(value if changed is None else changed)

    return edit


def edit_row(number, **values):
    """An edit of fields of one row of the summary."""

    def edit(members, fields):
        rows = list(csv.DictReader(io.StringIO(members["tables/summary.csv"].decode())))
        rows[number].update(values)
        write_rows(members, rows)

    return edit


def write_rows(members, rows, name="tables/summary.csv"):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    members[name] = text.getvalue().encode()


def rename(old, new, kind="method"):
    """An edit that gives a method or model another name wherever it stands."""

    def edit(members, fields):
        rows = list(csv.DictReader(io.StringIO(members["tables/summary.csv"].decode())))
        for row in rows:
            row[kind] = new if row[kind] == old else row[kind]
        write_rows(members, rows)
        for name in members:
            if name.endswith("measurement.json"):
                value = json.loads(members[name])
                value[kind] = new if value[kind] == old else value[kind]
                members[name] = parsing.as_json(value)
        value = json.loads(members["configuration.json"])
        value[f"{kind}s"] = {new if key == old else key: entry for key, entry in value[f"{kind}s"].items()}
        for shown in value["shown"]:
            if kind in shown:
                shown[kind] = new if shown[kind] == old else shown[kind]
        members["configuration.json"] = parsing.as_json(value)

    return edit


def rezipped(path, target, change=lambda info, data: (info, data), extra=()):
    """Write a bundle's entries again with Python's own zipfile: entries changed, left out (None) or added."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archived:
        for info in source.infolist():
            changed = change(info, source.read(info))
            if changed is not None:
                archived.writestr(*changed)
        for info, data in extra:
            archived.writestr(info, data)
    return target
