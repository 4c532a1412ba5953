"""Images of the page: the same prompts and seeds under every method, typical ones and the worst of each method."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from quantwatt.artifacts import layout
from quantwatt.artifacts.manifest import read_json, verify_files
from quantwatt.report import tables
from quantwatt.report.cells import Cell
from quantwatt.report.figures.image_grid import choose_prompts

TYPICAL = 8  # prompts of a model and sampling, beside the worst of each method
FIRST_WORST = 12  # methods whose worst image is shown unfolded
LARGEST = 1_500_000  # bytes of all pictures of a page, of which base64 makes a third more
EXACT = 160  # pixels: an image of at most this side is embedded as it is
SIDES = (512, 384, 256, 192)  # of larger ones, tried in turn until all fit
QUALITY = 85  # of WebP


def galleries(results: str | Path, cells: Sequence[Cell], samplings: Iterable[str]) -> list[dict[str, Any]]:
    """The images to embed, for each model and sampling with images.

    Args:
        results: the experiment's folder, results/EXPERIMENT.
        cells: those with images are shown; a method's worst are found by the first metric whose score holds the values
            of each image.
        samplings: names of those that are shown.
    Returns:
        list of {"model", "sampling", "exact": whether the pictures are the images themselves, "side": pixels,
        "methods": names, "prompts": [{"text", "seed", "number", "worst_of": names}], "pictures": data URIs
        [methods][prompts], "quality": {"title", "unit", "higher": whether that is better, "values": [methods][prompts]}
        or None}.
    Raises:
        DataError: an image is missing or is not the one that its manifest describes.
    """
    shown: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.sampling in samplings and cell.images["status"] == "ok" and "n_images" in cell.images:
            shown.setdefault((cell.model, cell.sampling), []).append(cell)
    n_sets = sum(map(len, shown.values()))
    return [_gallery(results, group, LARGEST * len(group) // n_sets) for group in shown.values()]


def _gallery(results, cells, most):
    paths = [layout.path(results, "images", vars(cell)) for cell in cells]
    entries = read_json(paths[0])["images"]
    metric, values = _values(cells)
    numbers = choose_prompts([image["prompt"] or "" for image in entries], TYPICAL)
    worst_of = _worst(cells, metric, values)
    for side in (None, *SIDES):
        chosen = _fitting(numbers, worst_of, cells, entries, most, side)
        if chosen:
            break
    images = [[read_json(path)["images"][number] for number in chosen] for path in paths]
    pictures = [[_picture(path, image, side) for image in row] for path, row in zip(paths, images, strict=True)]
    return {
        "model": cells[0].model,
        "sampling": cells[0].sampling,
        "exact": side is None,
        "side": max(cells[0].images["height"], cells[0].images["width"]) if side is None else side,
        "methods": [cell.method for cell in cells],
        "prompts": [
            {"text": entries[number]["prompt"] or "", "seed": entries[number]["seed"], "number": number,
             "worst_of": worst_of.get(number, [])}
            for number in chosen
        ],
        "pictures": pictures,
        "quality": metric
        and {
            "title": metric.title,
            "unit": metric.unit,
            "higher": metric.higher_is_better,
            "values": [[_value(values.get(cell.method), number) for number in chosen] for cell in cells],
        },
    }  # fmt: skip


def _values(cells):
    """(Metric, {method: value of each image, float64 [n]}) of the first metric whose scores hold them; (None, {})."""
    for name, metric in tables.METRICS.items():
        scores = {cell.method: cell.scores.get(name) or {} for cell in cells}
        found = {method: score["values"] for method, score in scores.items() if score.get("values") is not None}
        if metric.paired and found:
            return metric, found
    return None, {}


def _value(values, number):
    return None if values is None or not np.isfinite(values[number]) else round(float(values[number]), 4)


def _worst(cells, metric, values):
    """{number of an image: the methods whose worst it is}."""
    found: dict[int, list[str]] = {}
    for cell in cells:
        if cell.method in values and np.isfinite(values[cell.method]).any():
            badness = -values[cell.method] if metric.higher_is_better else values[cell.method]
            found.setdefault(int(np.nanargmax(badness)), []).append(cell.method)
    return found


def _fitting(numbers, worst_of, cells, entries, most, side):
    """As many of the prompts as fit, typical and worst ones in turns; None where even two do not."""
    if side is None:
        size = cells[0].images
        if max(size["height"], size["width"]) > EXACT:
            return None
        each = max(entry["bytes"] for entry in entries)
    else:
        each = side * side // 6  # measured: WebP of this quality takes a tenth to a sixth of a byte for each pixel
    count = most // (each * len(cells))
    if count < 2 and side != SIDES[-1]:
        return None
    worst = sorted(worst_of, key=lambda number: (-len(worst_of[number]), number))
    room = max(2, min(count, len(numbers) + len(worst)))
    n_worst = min(len(worst), room - min(len(numbers), max(1, room // 2)))
    return list(dict.fromkeys([*numbers[: room - n_worst], *worst[:n_worst]]))


def _picture(manifest, image, side):
    verify_files(manifest, {image["file"]: {"sha256": image["sha256"], "bytes": image["bytes"]}})
    path = Path(manifest).parent / image["file"]
    if side is None:
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def worst(gallery: Mapping[str, Any], baseline: str) -> list[dict[str, Any]]:
    """[{"method", "text", "seed", "value", "picture", "reference": the baseline's picture}], the worst first."""
    if not gallery["quality"] or baseline not in gallery["methods"]:
        return []
    reference, found = gallery["pictures"][gallery["methods"].index(baseline)], []
    for place, method in enumerate(gallery["methods"]):
        for column, prompt in enumerate(gallery["prompts"]):
            if method in prompt["worst_of"]:
                value = gallery["quality"]["values"][place][column]
                picture = gallery["pictures"][place][column]
                found.append(
                    {"method": method, "text": prompt["text"], "seed": prompt["seed"], "value": value,
                     "picture": picture, "reference": reference[column]}
                )  # fmt: skip
    return sorted(found, key=lambda one: one["value"] if gallery["quality"]["higher"] else -one["value"])


def samples(galleries: Iterable[Mapping[str, Any]], row: Mapping[str, Any], baseline: str) -> list[dict[str, Any]]:
    """The first typical picture by the baseline and by a row of the summary: [{"uri", "method", "text", "exact"}]."""
    return [
        {"uri": gallery["pictures"][gallery["methods"].index(method)][0], "method": method,
         "text": gallery["prompts"][0]["text"], "exact": gallery["exact"]}
        for gallery in galleries
        if _is_of(gallery, row)
        for method in (baseline, row["method"])
        if method in gallery["methods"]
    ]  # fmt: skip


def worst_value(galleries: Iterable[Mapping[str, Any]], row: Mapping[str, Any]) -> float | None:
    """The metric of the worst image of a row of the summary; None where no score holds single values."""
    for gallery in galleries:
        if _is_of(gallery, row) and gallery["quality"]:
            known = gallery["quality"]["values"][gallery["methods"].index(row["method"])]
            return next(
                (value for value, prompt in zip(known, gallery["prompts"], strict=True)
                 if row["method"] in prompt["worst_of"]), None,
            )  # fmt: skip
    return None


def _is_of(gallery, row):
    return (gallery["model"], gallery["sampling"]) == (row["model"], row["sampling"]) and row["method"] in gallery[
        "methods"
    ]
