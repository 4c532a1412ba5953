"""Write and read what a text model predicted: a JSON file of items, and a manifest that vouches for it.

An item is a sentence or a window of text. However it came about, it says {"nll": nats, summed over what was predicted,
"tokens": how many predictions those are, "correct": how many were the likeliest}.
"""

import hashlib
import math
from pathlib import Path

import numpy as np

from quantwatt.artifacts.errors import DataError, DegeneratePredictions
from quantwatt.artifacts.manifest import canonical_json, describe_files, read_json, verify_files, write_json
from quantwatt.score.metrics import Undefined

ITEMS = "items.json"
JUDGED = ("nll", "tokens", "correct")


def judged(items, labels):
    """Items of classified sentences with what their labels say of them; others as they are.

    Args:
        items: as of a family's `predict`.
        labels: whole numbers, one an item; None where the texts have none.
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


def require_judged(items):
    """Refuse items of which nothing says whether they are right.

    Raises:
        Undefined: the texts have no labels.
    """
    if any(key not in item for item in items for key in JUDGED):
        raise Undefined("the texts have no labels, so nothing says which predictions are right.")


def column(items, key):
    """[items] float64 of one of their figures."""
    return np.array([item[key] for item in items], np.float64)


def check(items):
    """Refuse what came out of a broken computation.

    Raises:
        DegeneratePredictions: a value is NaN or infinite.
    """
    for number, item in enumerate(items):
        if not all(map(math.isfinite, [item.get("nll", 0.0), *item.get("logits", ())])):
            raise DegeneratePredictions(f"item {number} has NaN or infinite values: the computation overflowed.")


def texts_sha256(texts, labels):
    """Hash of texts and labels in their order."""
    return hashlib.sha256(canonical_json([list(texts), labels]).encode()).hexdigest()


def write(folder, items, fields):
    """Write items.json and, last, manifest.json; returns the manifest.

    Raises:
        DegeneratePredictions: as of `check`.
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


def write_none(folder, status, reason, fields):
    """Write and return the manifest of a cell without predictions, and why; earlier ones are removed."""
    clear(folder)
    manifest = {"status": status, "reason": reason, **fields, "n_items": 0, "files": {}}
    write_json(Path(folder) / "manifest.json", manifest)
    return manifest


def clear(folder):
    """Remove earlier predictions, their manifest first."""
    for name in ("manifest.json", ITEMS):
        (Path(folder) / name).unlink(missing_ok=True)


def read(manifest_path):
    """The items of predictions, in order.

    Raises:
        DataError: there are none, or the file is missing, truncated or corrupted.
    """
    manifest = read_json(manifest_path)
    if manifest["status"] != "ok":
        raise DataError(f"{manifest_path}: there are no predictions ({manifest['status']}: {manifest['reason']}).")
    verify_files(manifest_path, manifest["files"])
    return read_json(Path(manifest_path).parent / ITEMS)["items"]


def read_pair(manifest_path, baseline_path):
    """The items of two methods for the same texts.

    Raises:
        DataError: the texts differ; and as `read`.
    """
    here, there = read_json(manifest_path), read_json(baseline_path)
    for key in ("texts_sha256", "n_items"):
        if here[key] != there[key]:
            raise DataError(
                f"{manifest_path}: {key} is {here[key]}, but {there[key]} in its baseline {baseline_path}; "
                "delete the older of both manifests and run again."
            )
    return read(manifest_path), read(baseline_path)
