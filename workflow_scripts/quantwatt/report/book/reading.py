"""Read a bundle of a stranger: what it returns has been checked, and nothing of it has been executed.

Verdicts are not read but judged anew from the ratios and the controls; images are decoded and written anew. What a
bundle claims to have measured cannot be checked here: the book says so.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantwatt.artifacts.errors import DataError
from quantwatt.config.schemas import ConfigurationError, complete
from quantwatt.registry import schema
from quantwatt.report import layer_table, tables
from quantwatt.report.book import MOST_CELLS, archive, parsing, pictures

NEEDED = "model method sampling status compute baseline size_mb energy_j latency_s memory_mb".split()
TEXTS = (
    "model method sampling status reason compute meter device unit solver features kernel device_id memory_source "
    "replicate_of steps_of allocation sensitivity weight_format cache"
).split()
TRUTHS = ("baseline", "device_fake", "energy_estimated", "in_pairs", "known", "quantize_energy_estimated")
POSITIVE = ("latency_s", "energy_j", "memory_mb", "size_mb", "energy_ratio", "latency_ratio", "energy_control",
            "latency_control")  # fmt: skip
STATUSES = ("ok", "simulated", "oom", "unsupported", "degenerate", "unmeasured", "reference")
SAME = 1e-6  # largest relative difference of a figure that a table has rounded


@dataclass(frozen=True)
class Entry:
    """One model, method and sampling.

    row: the summary's columns that the book reads, None where empty; measurement: its JSON; images: [PNG]; prompts: of
    the images, [{"prompt", "seed"}].
    """

    row: Mapping[str, Any]
    measurement: Mapping[str, Any]
    images: tuple[bytes, ...]
    prompts: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every part has been checked; sha256: of its file."""

    file: str
    sha256: str
    manifest: Mapping[str, Any]
    configuration: Mapping[str, Any]
    provenance: Mapping[str, Any]
    entries: tuple[Entry, ...]


def read_bundle(path: str | Path) -> Bundle:
    """Read and check a bundle.

    Raises:
        DataError: the file is no bundle, is too large, or a part is malformed or contradicts another; one sentence that
            names the file and the entry.
    """
    manifest, members, digest = archive.unpack(path)
    manifest = _checked(manifest, "manifest", f"{path}: {archive.MANIFEST}")
    parts = {name: _part(path, members, name) for name in ("configuration", "provenance", "hashes")}
    if "tables/recommendation.json" in members:
        where = f"{path}: tables/recommendation.json"
        _checked(parsing.read_json(members["tables/recommendation.json"], where), "recommendation", where)
    if "tables/layers.csv" in members:
        columns: dict[str, type] = {name: float if name in layer_table.NUMBERS else str for name in layer_table.COLUMNS}
        parsing.read_csv(
            members["tables/layers.csv"], f"{path}: tables/layers.csv", columns, ("model", "method", "layer")
        )
    rows = _rows(path, members)
    _check_cells(path, members, len(rows))
    shown = {(part["model"], part["sampling"]): part["images"] for part in parts["configuration"]["shown"]}
    entries = []
    for number, row in enumerate(rows):
        prompts = shown.get((row["model"], row["sampling"]), [])
        entries.append(_entry(path, members, number, row, prompts))
    for number, row in enumerate(rows):
        for key in ("model", "method"):
            if row[key] not in parts["configuration"][f"{key}s"]:
                raise DataError(
                    f"{path}: tables/summary.csv: row {number + 1}: its {key} is not in configuration.json."
                )
    return Bundle(str(path), digest, manifest, parts["configuration"], parts["provenance"], tuple(entries))


def _part(path, members, name):
    file = f"{name}.json"
    if file not in members:
        raise DataError(f"{path}: {file}: missing.")
    return _checked(parsing.read_json(members[file], f"{path}: {file}"), name, f"{path}: {file}")


def _checked(value, part, where):
    """A value that fits its part of the schema; the schemas' sentences name the entry."""
    try:
        return complete(value, schema("bundle")["properties"][part], where, "")
    except ConfigurationError as error:
        raise DataError(str(error)) from error


def kinds() -> dict[str, type]:
    """{column of the summary that is read: str, bool or float}; of metrics those that this program knows."""
    columns = [name for name in tables.SUMMARY_COLUMNS if not name.endswith("verdict")]
    reasons = [name for name in columns if name.endswith("_reason")]
    found: dict[str, type] = dict.fromkeys(columns, float)
    return found | dict.fromkeys((*TEXTS, *reasons), str) | dict.fromkeys(TRUTHS, bool)


def _rows(path, members):
    where = f"{path}: tables/summary.csv"
    if "tables/summary.csv" not in members:
        raise DataError(f"{where}: missing.")
    rows = parsing.read_csv(members["tables/summary.csv"], where, kinds(), NEEDED)
    if not 0 < len(rows) <= MOST_CELLS:
        raise DataError(f"{where}: {len(rows):,} rows; a bundle has 1 to {MOST_CELLS:,}.")
    seen, baselines = set(), set()
    for number, row in enumerate(rows, 1):
        key = (row["model"], row["sampling"])
        _check_row(row, f"{where}: row {number}")
        if (*key, row["method"]) in seen or (row["baseline"] and key in baselines):
            raise DataError(f"{where}: row {number}: is there twice, or is a second baseline.")
        seen.add((*key, row["method"]))
        if row["baseline"]:
            baselines.add(key)
    return rows


def _check_row(row, where):
    for name in ("model", "method", "sampling", "status"):
        if not row[name] or len(row[name]) > 100 or not row[name].isprintable():
            raise DataError(f"{where}: {name}: should be a printable name of at most 100 characters.")
    if row["status"] not in STATUSES or row["compute"] not in ("real", "simulated", None):
        raise DataError(f"{where}: status or compute: is none that quantwatt writes.")
    columns = [*POSITIVE, *(metric.column for metric in tables.METRICS.values())]
    for name in columns:
        value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
        if name in POSITIVE and any(figure is not None and figure <= 0 for figure in (value, low, high)):
            raise DataError(f"{where}: {name}: is not positive.")
        known = [figure for figure in (low, value, high) if figure is not None]
        if any(a > b * (1 + SAME) if b > 0 else a > b * (1 - SAME) for a, b in itertools.pairwise(known)):
            raise DataError(f"{where}: {name}: does not lie within its interval.")
        if value is None and len(known):
            raise DataError(f"{where}: {name}: has an interval and no value.")
    costs = [row[name] for name in ("energy_j", "latency_s", "energy_ratio", "latency_ratio")]
    if row["compute"] == "simulated" and any(cost is not None for cost in costs):
        raise DataError(f"{where}: is simulated and has a time or an energy; what is simulated is never timed.")
    if row["energy_j"] is not None and not row["meter"]:
        raise DataError(f"{where}: energy_j: has no meter.")


def _check_cells(path, members, rows):
    """Refuse what belongs to no row, and images with gaps."""
    images: dict[int, list[int]] = {}
    for name in members:
        match = re.fullmatch(r"cells/(\d{4})/(?:image-(\d)\.png|.*)", name)
        if match and int(match[1]) >= rows:
            raise DataError(f"{path}: {name}: the summary has no such row.")
        if match and match[2]:
            images.setdefault(int(match[1]), []).append(int(match[2]))
    for number, places in images.items():
        if sorted(places) != list(range(len(places))):
            raise DataError(f"{path}: cells/{number:04d}: an image is missing before another one.")


def _entry(path, members, number, row, prompts):
    place = f"cells/{number:04d}"
    where = f"{path}: {place}/measurement.json"
    if f"{place}/measurement.json" not in members:
        raise DataError(f"{where}: missing.")
    measured = _checked(parsing.read_json(members[f"{place}/measurement.json"], where), "measurement", where)
    for key in ("model", "method", "sampling"):
        if measured[key] != row[key]:
            raise DataError(f"{where}: {key}: is not that of row {number + 1} of the summary.")
    for column, figure in (("energy_j", "value"), ("latency_s", "median")):
        told, own = row[column], (measured[column] or {}).get(figure)
        number_like = isinstance(own, int | float) and not isinstance(own, bool)
        if told is not None and not (number_like and abs(told - own) <= SAME * abs(own)):
            raise DataError(f"{where}: {column}: is not that of row {number + 1} of the summary.")
    if row["energy_j"] is not None:
        if measured["meter"] != row["meter"] or measured["estimated"] != bool(row["energy_estimated"]):
            raise DataError(f"{where}: meter: is not that of row {number + 1} of the summary.")
        if row["meter"] == "estimate" and not measured["estimated"]:
            raise DataError(f"{where}: estimated: false, but the meter estimates.")
    if f"{place}/power.csv" in members:
        columns: dict[str, type] = dict.fromkeys(("t_s", "watts", "watts_low", "watts_high", "samples"), float)
        parsing.read_csv(members[f"{place}/power.csv"], f"{path}: {place}/power.csv", columns, tuple(columns))
    names = sorted(name for name in members if name.startswith(f"{place}/image-"))
    if names and len(names) != len(prompts):
        raise DataError(f"{path}: {place}: {len(names)} images, but configuration.json has {len(prompts)} prompts.")
    images = tuple(pictures.accepted(members[name], f"{path}: {name}") for name in names)
    return Entry(row, measured, images, tuple(prompts) if images else ())
