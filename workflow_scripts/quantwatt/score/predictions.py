"""Write and read the predictions of a text model: a JSON file of items, and its manifest.

An item is a sentence or a window of text. Every scored item has {"nll": negative log-likelihood in nats, summed over
its predictions, "tokens": number of predictions, "correct": number of predictions whose target was the most likely}.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantwatt.artifacts.errors import DataError, DegeneratePredictions
from quantwatt.artifacts.manifest import canonical_json, describe_files, read_json, verify_files, write_json
from quantwatt.score.metrics import Undefined

ITEMS = "items.json"
JUDGED = ("nll", "tokens", "correct")


def judged(items: list[dict[str, Any]], labels: Sequence[int] | None) -> list[dict[str, Any]]:
    """Items with nll, tokens and correct computed from their labels; unchanged without labels.

    Args:
        items: list returned by a family's `predict`.
        labels: integers, one per item; None if the texts have no labels.
    Raises:
        DataError: a label that the model does not have.
    """
    if labels is None:
        return items
    judged_items = []
    for item, label in zip(items, labels, strict=True):
        if not label < len(item["logits"]):
            raise DataError(f"a text has the label {label}, and the model knows {len(item['logits'])}, from 0.")
        largest = max(item["logits"])
        total = largest + math.log(sum(math.exp(logit - largest) for logit in item["logits"]))
        correct = int(item["label"] == label)
        judged_items.append({**item, "nll": total - item["logits"][label], "tokens": 1, "correct": correct})
    return judged_items


def require_judged(items: Iterable[Mapping[str, Any]]) -> None:
    """Refuse items that have no labels to judge them by.

    Raises:
        Undefined: the texts have no labels.
    """
    if any(key not in item for item in items for key in JUDGED):
        raise Undefined("the texts have no labels, so predictions cannot be judged.")


def column(items: Iterable[Mapping[str, Any]], key: str) -> np.ndarray:
    """One value of every item, float64 [items]."""
    return np.array([item[key] for item in items], np.float64)


def check(items: Iterable[Mapping[str, Any]]) -> None:
    """Refuse predictions with NaN or infinite values.

    Raises:
        DegeneratePredictions: an nll or a logit is NaN or infinite.
    """
    for number, item in enumerate(items):
        if not all(map(math.isfinite, [item.get("nll", 0.0), *item.get("logits", ())])):
            raise DegeneratePredictions(f"item {number} has NaN or infinite values: the computation overflowed.")


def texts_sha256(texts: Iterable[str], labels: Sequence[int] | None) -> str:
    """SHA-256 of texts and labels in the given order."""
    return hashlib.sha256(canonical_json([list(texts), labels]).encode()).hexdigest()


def write(folder: str | Path, items: Sequence[Mapping[str, Any]], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Write items.json and, last, manifest.json; returns the manifest.

    Raises:
        DegeneratePredictions: an nll or a logit is NaN or infinite.
        DataError: there are no items, or the disk is full.
    """
    folder = Path(folder)
    clear(folder)
    check(items)
    if not items:
        raise DataError(f"{folder}: there is nothing to predict.")
    write_json(folder / ITEMS, {"items": items})
    manifest = {"status": "ok", "reason": None, **fields, "n_items": len(items)}
    manifest["files"] = describe_files(folder, [ITEMS])
    write_json(folder / "manifest.json", manifest)
    return manifest


def write_none(folder: str | Path, status: str, reason: str | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Write and return the manifest of a cell without predictions, with the reason; remove earlier predictions."""
    clear(folder)
    manifest = {"status": status, "reason": reason, **fields, "n_items": 0, "files": {}}
    write_json(Path(folder) / "manifest.json", manifest)
    return manifest


def clear(folder: str | Path) -> None:
    """Remove earlier predictions, the manifest first."""
    for name in ("manifest.json", ITEMS):
        (Path(folder) / name).unlink(missing_ok=True)


def read(manifest_path: str | Path) -> list[dict[str, Any]]:
    """Read the items of predictions, in order.

    Raises:
        DataError: there are no predictions, or the file is missing, truncated or corrupted.
    """
    manifest = read_json(manifest_path)
    if manifest["status"] != "ok":
        raise DataError(f"{manifest_path}: there are no predictions ({manifest['status']}: {manifest['reason']}).")
    verify_files(manifest_path, manifest["files"])
    return read_json(Path(manifest_path).parent / ITEMS)["items"]


def read_pair(
    manifest_path: str | Path, baseline_path: str | Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the items of two methods for the same texts.

    Raises:
        DataError: the texts differ, or as for `read`.
    """
    here, there = read_json(manifest_path), read_json(baseline_path)
    for key in ("texts_sha256", "n_items"):
        if here[key] != there[key]:
            raise DataError(
                f"{manifest_path}: {key} is {here[key]}, but {there[key]} in its baseline {baseline_path}; "
                "delete the older of both manifests and run again."
            )
    return read(manifest_path), read(baseline_path)
