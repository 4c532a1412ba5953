"""Make the contents of a bundle from a finished result: results/EXPERIMENT."""

import datetime
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import quantwatt
from quantwatt.artifacts import layout
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import read_json, sha256
from quantwatt.report import tables
from quantwatt.report.book import MOST_BYTES, MOST_CELLS, archive, parsing, pictures, traces
from quantwatt.report.book.privacy import Privacy
from quantwatt.report.cells import Cell, cell_paths, read_cells
from quantwatt.report.figures.image_grid import choose_prompts

# What a measurement tells that fits into a few kilobytes: not its processes, warm-ups and every block's neighbours.
OF_A_MEASUREMENT = (
    "status reason model method sampling compute kernel images_per_batch latency_s energy_j energy_reason "
    "secondary_energy_j memory_mb phases phases_apart phases_check baseline ratio ratio_reason in_pairs pairs known "
    "level meter estimated measuring n_blocks n_processes n_invalid invalid_reasons others_share throttled_s "
    "crosscheck device provenance"
).split()
OF_A_SAMPLING = "seed steps guidance height width n_images n_items prompts_sha256 texts_sha256 reading".split()
# (images a method, pixels of a side), the first that fits into MOST_BYTES is taken.
IMAGES = ((4, 128), (4, 96), (3, 96), (2, 96), (2, 64), (1, 64), (0, 0))


@dataclass(frozen=True)
class Result:
    """A finished result as it lies on disk.

    experiment: its complete settings, as of config.experiment.load_experiment, or None where they are not known.
    """

    folder: Path
    name: str
    summary: pd.DataFrame
    cells: Sequence[Cell]
    entries: Sequence[Mapping[str, str]]  # {"model", "method", "sampling"} of each cell
    metrics: Sequence[str]
    experiment: Mapping[str, Any] | None


def read_result(folder: Path, name: str, experiment: Mapping[str, Any] | None) -> Result:
    """Read a finished result, and hold its files against one another and against the experiment's settings.

    Raises:
        DataError: it is not finished, was made with other settings, or its tables are older than its measurements.
    """
    path = layout.path(folder, "summary")
    if not path.exists():
        raise DataError(f"{path}: the file does not exist; run the experiment to its end first.")
    summary = tables.read_summary(path)
    if missing := [column for column in tables.SUMMARY_COLUMNS if column not in summary]:
        raise DataError(f"{path}: the column {missing[0]} is missing; run snakemake again, so that it is made anew.")
    if not 0 < len(summary) <= MOST_CELLS:
        raise DataError(f"{path}: {len(summary):,} rows; a bundle has 1 to {MOST_CELLS:,}: split the experiment.")
    entries = [
        {"model": row["model"], "method": row["method"], "sampling": row["sampling"]}
        | ({"kind": "text"} if row["unit"] == "inference" else {})
        for row in summary.to_dict("records")
    ]
    if experiment is not None:
        for entry in entries:
            for key in ("model", "method", "sampling"):
                if entry[key] not in experiment[f"{key}s"]:
                    raise DataError(
                        f"{path}: {key} '{entry[key]}' is not in the experiment '{name}'; run it again, or pass "
                        "--experiment with the right name."
                    )
    metrics = [
        name
        for name, metric in tables.METRICS.items()
        if summary[[metric.column, f"{metric.column}_reason"]].notna().to_numpy().any()
    ]
    cells = read_cells(folder, entries, metrics, experiment)
    for row, cell in zip(summary.to_dict("records"), cells, strict=True):
        _check_fresh(path, row, cell)
    return Result(folder, name, summary, cells, entries, metrics, experiment)


def _check_fresh(path, row, cell):
    """Refuse a table that was made of another measurement than the one that is packed beside it."""
    for column, figure in (("energy_j", "value"), ("latency_s", "median")):
        measured = (cell.measurement.get(column) or {}).get(figure)
        told = row[column]
        if pd.notna(told) and (measured is None or abs(told - measured) > 1e-6 * abs(measured)):
            raise DataError(
                f"{path}: {cell.model}, {cell.method}, {cell.sampling}: {column} is {told:g}, but its measurement says "
                f"{measured}; run snakemake again, so that the tables are made anew."
            )


def measured_on(result: Result) -> str:
    """The day of the last measurement in UTC, YYYY-MM-DD; that of its file where the measurement does not tell."""
    told = [cell.measurement["measured"]["at"] for cell in result.cells if cell.measurement.get("measured")]
    if told:
        return max(told).split(" ")[0]
    paths = [layout.path(result.folder, "measurement", entry) for entry in result.entries]
    last = max(path.stat().st_mtime for path in paths)
    return datetime.datetime.fromtimestamp(last, datetime.UTC).strftime("%Y-%m-%d")


def bundle(result: Result, privacy: Privacy, date: str) -> bytes:
    """The bytes of the bundle of a result, with as many and as large images as fit.

    Args:
        date: of the measurements, YYYY-MM-DD.
    Raises:
        DataError: it does not fit without images either, or holds a name of this user or machine.
    """
    fixed = _tables(result, privacy)
    fixed["provenance.json"] = parsing.as_json(privacy.cleaned(_provenance(result), "provenance.json"))
    fixed["hashes.json"] = parsing.as_json(privacy.cleaned(_hashes(result), "hashes.json"))
    for number, (entry, cell) in enumerate(zip(result.entries, result.cells, strict=True)):
        place = f"cells/{number:04d}"
        kept = {key: cell.measurement[key] for key in OF_A_MEASUREMENT if key in cell.measurement}
        where = str(layout.path(result.folder, "measurement", entry))
        fixed[f"{place}/measurement.json"] = parsing.as_json(privacy.cleaned(kept, where))
        if trace := traces.downsample(layout.path(result.folder, "power", entry)):
            fixed[f"{place}/power.csv"] = trace
    fields = privacy.cleaned(
        {"experiment": result.name, "date": date, "quantwatt": quantwatt.__version__}, "manifest.json"
    )
    chosen = _chosen(result)
    for count, side in IMAGES:
        shown, members = _images(chosen, count, side)
        told = privacy.cleaned(_configuration(result, shown), "configuration.json")
        packed = archive.pack({**fixed, **members, "configuration.json": parsing.as_json(told)}, fields)
        if len(packed) <= MOST_BYTES:
            return packed
    largest = max(fixed, key=lambda name: len(fixed[name]))
    raise DataError(
        f"{result.folder}: its bundle has {len(packed):,} bytes without any image, and at most {MOST_BYTES:,} are "
        f"allowed; its largest part is {largest}: split the experiment."
    )


def _tables(result, privacy):
    """The tables' bytes; the two of texts are cleaned field by field."""
    members = {}
    for key in ("summary", "layers"):
        path = layout.path(result.folder, key)
        if not path.exists():
            continue
        table = tables.read_table(path)
        for column in table.select_dtypes(include=["object", "string"]):
            cleaned = [
                privacy.cleaned(value, str(path), f"row {row}: {column}", column) if isinstance(value, str) else value
                for row, value in enumerate(table[column], 1)
            ]
            table[column] = pd.Series(cleaned, table.index, dtype=object)
        with tempfile.TemporaryDirectory() as folder:
            tables.write_table(Path(folder, path.name), table)
            members[f"tables/{key}.csv"] = Path(folder, path.name).read_bytes()
    path = layout.path(result.folder, "recommendation")
    if path.exists():
        members["tables/recommendation.json"] = parsing.as_json(privacy.cleaned(read_json(path), str(path)))
    return members


def _configuration(result, shown):
    """Everything that was set, as the stages recorded it, and the experiment's own entries where they are known."""
    found: dict[str, dict[str, Any]] = {"models": {}, "methods": {}, "samplings": {}}
    for entry, cell in zip(result.entries, result.cells, strict=True):
        path = layout.path(result.folder, "model", entry)
        if cell.model not in found["models"]:
            settings = read_json(path).get("settings") if path.exists() else None
            found["models"][cell.model] = settings or cell.checkpoint.get("model_settings") or {}
        found["methods"].setdefault(cell.method, cell.checkpoint.get("settings") or {})
        if cell.images["status"] == "ok":
            recorded = {key: cell.images[key] for key in OF_A_SAMPLING if key in cell.images}
            found["samplings"].setdefault(cell.sampling, recorded)
    baselines = result.summary.loc[result.summary["baseline"].astype(bool), "method"]
    return found | {
        "baseline": baselines.iloc[0] if len(baselines) else None,
        "metrics": list(result.metrics),
        "experiment": result.experiment,
        "shown": shown,
    }


def _provenance(result):
    """What made the result: each distinct value once, in the cells' order."""
    records = [
        part.get("provenance") or {}
        for cell in result.cells
        for part in (cell.checkpoint, cell.images, cell.measurement, *cell.scores.values())
    ]
    versions: dict[str, dict] = {}
    for record in records:
        for package, version in (record.get("versions") or {}).items():
            versions.setdefault(package, {})[version] = None
    devices = [cell.measurement.get("device") or {} for cell in result.cells]
    return {
        "commits": _distinct(record.get("commit") for record in records),
        "python": _distinct(record.get("python") for record in records),
        "systems": _distinct(record.get("system") for record in records),
        "processors": _distinct(record.get("cpu") for record in records),
        "devices": _distinct(device.get("name") for device in devices),
        "versions": {package: _distinct(found) for package, found in sorted(versions.items())},
    }


def _distinct(values: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _hashes(result):
    """sha256 of every file that the bundle was made of, and of the models' files."""
    files = {layout.path(result.folder, key) for key in ("summary", "layers", "recommendation")}
    models = {}
    for entry in result.entries:
        files |= set(cell_paths(result.folder, entry, result.metrics).values())
        files.add(layout.path(result.folder, "power", entry))
        path = layout.path(result.folder, "model", entry)
        if path.exists():
            files.add(path)
            listed = read_json(path).get("files") or {}
            models[entry["model"]] = [{"file": name, "sha256": file["sha256"]} for name, file in sorted(listed.items())]
    present = sorted(path for path in files if path.exists())
    return {
        "results": [{"file": str(path.relative_to(result.folder)), "sha256": sha256(path)} for path in present],
        "models": models,
    }


def _chosen(result):
    """[(place of the cell, its manifest, its model and sampling, {count: entries of as many images})].

    Per model and sampling the prompts are the same for all methods. Of samplings that differ only by seed or steps, the
    first is shown.
    """
    found, indices = [], {}
    samplings = set(tables.first_samplings(result.summary)["sampling"])
    for number, entry in enumerate(result.entries):
        if entry.get("kind") == "text" or entry["sampling"] not in samplings:
            continue
        path, key = layout.path(result.folder, "images", entry), (entry["model"], entry["sampling"])
        images = read_json(path)["images"]  # of 50,000 images 40 MB: read once, and only what is shown is kept
        if not images:
            continue
        if key not in indices:
            prompts = [image["prompt"] or "" for image in images]
            indices[key] = {count: choose_prompts(prompts, count) for count, _ in IMAGES}
        found.append((number, path, key, {count: [images[i] for i in own] for count, own in indices[key].items()}))
    return found


def _images(chosen, count, side):
    """(the prompts that are shown, {name: PNG}) of `_chosen`."""
    shown, members = {}, {}
    for number, path, (model, sampling), images in chosen if count else ():
        prompts = [{"prompt": image["prompt"], "seed": image["seed"]} for image in images[count]]
        shown.setdefault((model, sampling), {"model": model, "sampling": sampling, "images": prompts})
        for place, image in enumerate(images[count]):
            members[f"cells/{number:04d}/image-{place}.png"] = pictures.small(path, image, side)
    return list(shown.values()), members
