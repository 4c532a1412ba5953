"""Name what differs between two results, beside their figures: versions, machine, kernels, prompts, settings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from quantwatt.artifacts.manifest import canonical_json
from quantwatt.report.cells import Cell
from quantwatt.report.compare.result_folder import Key, Row

HASH = 12  # digits of a hash that are shown
OF_IMAGES = "seed steps guidance height width n_images n_items texts kernel compute".split()
OF_MEASUREMENT = ("images_per_batch", "meter", "measuring", "kernel", "compute")
OF_DEVICE = ("name", "uuid_hash", "driver", "power_limit_w", "threads")
OF_SCORE = ("library", "features", "resize", "reference_sha256", "resamples")
OF_ROW = "device device_id meter kernel compute seed steps n_images features solver".split()


@dataclass(frozen=True)
class Difference:
    """A fact that differs: `earlier` and `now` are what it was in `rows`, as text; "unknown" if it was not recorded."""

    fact: str
    earlier: str
    now: str
    rows: tuple[Key, ...]


def differences(told: Mapping[Key, tuple[Mapping[str, str], Mapping[str, str]]]) -> list[Difference]:
    """What differs in rows that two results have, what concerns most rows first.

    Args:
        told: {row: (`facts` of the earlier result, of the later one)}.
    """
    found: dict[tuple[str, str, str], list[Key]] = {}
    for key, (before, after) in told.items():
        for fact in dict.fromkeys((*before, *after)):
            one, other = (facts_of.get(fact, "unknown") for facts_of in (before, after))
            if one != other:
                found.setdefault((fact, one, other), []).append(key)
    order = sorted(found.items(), key=lambda item: -len(item[1]))  # stable: facts in their order
    return [Difference(*what, tuple(rows)) for what, rows in order]


def facts(cell: Cell, row: Row) -> Iterator[tuple[str, str]]:
    """(fact, value as text) of a cell; from its row of the summary where its files are missing."""
    records = [record for record in (cell.checkpoint, cell.images, cell.measurement, *cell.scores.values())]
    yield from _provenance(records)
    images, measured = cell.images, cell.measurement
    device = measured.get("device") or {}
    yield from ((f"device: {key}", _text(device[key])) for key in OF_DEVICE if device.get(key) is not None)
    prompts = images.get("prompts_sha256") or images.get("texts_sha256")
    if prompts:
        yield "prompts or texts", prompts[:HASH]
    yield from ((key, _text(images[key])) for key in OF_IMAGES if images.get(key) is not None)
    yield from _leaves("measured", {key: measured[key] for key in OF_MEASUREMENT if measured.get(key) is not None})
    yield from _leaves("method", cell.checkpoint.get("settings") or {})
    yield from _leaves("model", cell.checkpoint.get("model_settings") or {})
    for metric, score in cell.scores.items():
        yield from _leaves(metric, {key: score[key] for key in OF_SCORE if score.get(key) is not None})
    if measured["status"] == images["status"] == "missing":
        yield from ((key.replace("_", " "), _text(row[key])) for key in OF_ROW if pd.notna(row.get(key)))


def _provenance(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Commit, machine and versions; where the files of a cell differ in one, all of its values."""
    seen: dict[str, dict[str, None]] = {}
    for record in records:
        told = record.get("provenance") or {}
        versions = {name: version for name, version in (told.get("versions") or {}).items() if version}
        for fact, value in {
            **{key: told.get(key) for key in ("commit", "python", "system", "cpu")},
            **versions,
        }.items():
            if value is not None:
                seen.setdefault(fact, {})[str(value)] = None
    return ((fact, ", ".join(sorted(values))) for fact, values in seen.items())


def _leaves(name, value) -> Iterator[tuple[str, str]]:
    """(path, value as text) of all values of nested settings."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(f"{name}.{key}", below)
    else:
        yield name.replace(".", ": ", 1), _text(value)[:HASH] if name.endswith("sha256") else _text(value)


def _text(value):
    return value if isinstance(value, str) else canonical_json(value) if isinstance(value, list) else str(value)
