"""Estimate the memory for scoring, from the manifests of the features that it reads."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantwatt.registry import schema

LIBRARIES_MB = 1500
COPIES = 4  # of features in memory: as stored, in float64, and resampled


def of_files(metric: str, inputs: Mapping[str, str | Path]) -> int:
    """Memory to request in MB, from the inputs of a score.

    Args:
        metric: its name.
        inputs: {name: path}; "features", "reference_features" and "baseline_features" are manifests of features.
    Raises:
        FileNotFoundError: one of these does not exist yet; Snakemake then evaluates the resource again later.
    """
    manifests = {name: json.loads(Path(path).read_text()) for name, path in inputs.items() if name.endswith("features")}
    return score_memory_mb(metric, manifests.pop("reference_features", None), manifests.values())


def score_memory_mb(metric: str, reference: Mapping[str, Any] | None, sets: Iterable[Mapping[str, Any]]) -> int:
    """Memory to request in MB.

    Args:
        metric: its name; metrics of images or predictions read them one by one.
        reference: the manifest of the reference images' features, or None for a metric without reference.
        sets: the manifests of the features of the generated images and of the baseline's images.
    """
    sets, pairs, declared = list(sets), 0, schema(f"metrics/{metric}")
    loaded = sum(_bytes(features) for features in sets)
    if reference and declared["x-compared-with"] == "moments":
        loaded += _bytes(reference, ("-mean.npy", "-covariance.npy"))
    elif reference:
        matrices, largest = declared.get("x-pairs"), max(features["n_images"] for features in (reference, *sets))
        if not matrices or largest <= matrices["most_images"]:  # else only subsets are read
            loaded += _bytes(reference)
            pairs = matrices["matrices"] * largest**2 if matrices else 0
    return LIBRARIES_MB + round((COPIES * loaded + 8 * pairs) / 1e6)


def _bytes(features, end=""):
    return sum(file["bytes"] for name, file in features["files"].items() if name.endswith(end))
