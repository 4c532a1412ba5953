"""Score one set of images or predictions by one metric."""

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from quantwatt import intervals, registry
from quantwatt.artifacts import feature_files, images
from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import finite, read_json, write_json
from quantwatt.artifacts.provenance import provenance
from quantwatt.config import metric_entries
from quantwatt.jobs import command
from quantwatt.score import metrics, predictions

EXTRACTION = ("extractor", "weights_sha256", "resize")  # must be equal in two sets of features that are compared
PAIRING = (*EXTRACTION, "n_images", "prompts_sha256")  # ... image by image
OWN_ARRAYS = {  # {value of "x-compared-with": (array of the features, what is needed where it is not there)}
    "text": ("text", "the features of the prompts, which {extractor} does not give; take the judge or clip"),
    "classes": ("asked", "a classifier, and class numbers as prompts"),
    "quality": ("quality", "features of texts, which {extractor} does not give; delete the file and run again"),
}


def score_against_baseline(
    metric: str,
    settings: Mapping[str, Any],
    images_path: str | Path,
    baseline_path: str | Path | None,
    is_baseline: bool = False,
) -> dict[str, Any]:
    """Score by a metric that compares the pixels, or the latents, of each image with the baseline's.

    Args:
        metric: name of the metric.
        settings: {"resamples": int or None, "seed": int}, both optional.
        images_path, baseline_path: manifests of the two image sets.
        is_baseline: whether the images are the baseline's; the second path may then be None.
    Returns:
        The object of METRIC.json.
    Raises:
        DataError: a file is corrupted, the sets do not have the same prompts and seeds, or latents were not kept.
    """
    module: Any = registry.load("metrics", metric)
    manifest = read_json(images_path)
    result = _unscored(metric, module, manifest)
    if manifest["status"] != "ok":
        return result
    if is_baseline or baseline_path is None:
        return result | {"status": "reference", "reason": "the reference itself"}
    baseline = read_json(baseline_path)
    if baseline["status"] != "ok":
        reason = f"the baseline has no images ({baseline['status']}: {baseline['reason']})"
        return result | {"status": "unsupported", "reason": reason}
    result |= {
        "resize": "none",
        "reference": baseline.get("method"),
        "reference_sha256": images.images_sha256(baseline),
    }
    paired = images.paired_latents if metric_entries.reads_trajectories(metric) else images.paired_images
    return result | _scored(module, settings, *paired(images_path, baseline_path))


def score_predictions(
    metric: str,
    settings: Mapping[str, Any],
    predictions_path: str | Path,
    baseline_path: str | Path | None,
    is_baseline: bool = False,
) -> dict[str, Any]:
    """Score of a text model's predictions, and its change from the baseline's score.

    Args:
        metric, settings: as for `score_against_baseline`.
        predictions_path, baseline_path: manifests of the two sets of predictions.
        is_baseline: whether the predictions are the baseline's; the second path may then be None.
    Returns:
        The object of METRIC.json; `change` is {"value", "low", "high"} of the difference from the baseline's score
        (paired bootstrap), or None.
    Raises:
        DataError: a file is corrupted, or the two sets have different texts.
    """
    module: Any = registry.load("metrics", metric)
    manifest = read_json(predictions_path)
    result = _unscored(metric, module, manifest)
    if manifest["status"] != "ok":
        return result
    items = predictions.read(predictions_path)
    result |= _scored(module, settings, items, None)
    if is_baseline or baseline_path is None or result["status"] != "ok":
        return result
    baseline = read_json(baseline_path)
    if baseline["status"] != "ok":
        return result
    result |= {"reference": baseline.get("method"), "reference_sha256": baseline["files"][predictions.ITEMS]["sha256"]}
    pair = predictions.read_pair(predictions_path, baseline_path)
    return result | {"change": _change(module, settings, *pair, None)}


def score_features(
    metric: str,
    settings: Mapping[str, Any],
    features_path: str | Path,
    reference_path: str | Path | None = None,
    baseline_path: str | Path | None = None,
) -> dict[str, Any]:
    """Score of features against a reference, the prompts or the baseline's, and its change from the baseline's score.

    Args:
        metric, settings: as for `score_against_baseline`.
        features_path: EXTRACTOR.json of the image set.
        reference_path: EXTRACTOR.json of the reference images; None for a metric without a reference.
        baseline_path: EXTRACTOR.json of the baseline's images; None if the baseline itself is scored, and for numbers
            of pairs, which the features are.
    Returns:
        The object of METRIC.json; `change` as in `score_predictions`, None for a metric that compares with the
        baseline.
    Raises:
        DataError: a file is corrupted, or two sets of features have different extractors or prompts.
    """
    module: Any = registry.load("metrics", metric)
    features, tensors = feature_files.read_features(features_path)
    result = _unscored(metric, module, features)
    if features["status"] != "ok":
        return result
    result |= {"features": features["extractor"], "resize": features["resize"]}
    scored, baseline, of_baseline = metric_entries.array_of(metric), None, {}
    if baseline_path is not None:
        baseline, of_baseline = feature_files.read_features(baseline_path)
    compared_with = metric_entries.compared_with(metric)
    if compared_with == "baseline":
        if not features.get("baseline") and (baseline is None or baseline["status"] != "ok"):
            return result | {"status": "unsupported", "reason": "the baseline has no images."}
        partner: Any = features.get("baseline") or baseline  # numbers of pairs name their own
        if partner is baseline:
            _check_same(features_path, features, baseline_path, baseline, PAIRING)
        result |= {"reference": partner["method"], "reference_sha256": partner["images_sha256"]}
        return result | _scored(module, settings, tensors[scored], of_baseline.get("image"))
    if compared_with in metric_entries.WITH_REFERENCE:
        reference, compared = _reference(compared_with, reference_path)
        _check_same(features_path, features, reference_path, reference, EXTRACTION)
        result |= {"reference": reference["reference"], "reference_sha256": reference["images_sha256"]}
    else:
        compared = _array_compared_with(compared_with, metric, features_path, features, tensors)
    result |= _scored(module, settings, tensors[scored], compared)
    if baseline is None or result["status"] != "ok" or baseline["status"] != "ok":
        return result
    _check_same(features_path, features, baseline_path, baseline, PAIRING)
    return result | {"change": _change(module, settings, tensors[scored], of_baseline[scored], compared)}


def _array_compared_with(compared_with, metric, path, features, tensors):
    """The array of the features themselves that a metric compares with; None for "nothing"."""
    if compared_with == "nothing":
        return None
    name, needed = OWN_ARRAYS[compared_with]
    if name not in tensors:
        raise DataError(f"{path}: {metric} needs {needed.format(**features)}.")
    return tensors[name]


def _reference(compared_with, path):
    """The manifest of the reference's features, and the features or moments that the metric compares with."""
    if compared_with == "moments":
        return feature_files.read_moments(path)
    reference, tensors = feature_files.read_features(path)
    return reference, tensors["image"]


def _check_same(path, features, other_path, other, keys):
    for key in keys:
        if other[key] != features[key]:
            raise DataError(
                f"{path}: {key} is {features[key]}, but {other[key]} in {other_path}; delete both and run again."
            )


def _change(module: metrics.Metric, settings, samples, baseline, compared):
    """{"value", "low", "high"} of the difference from the baseline, or None if it has no finite value."""
    try:
        difference = module.change(samples, baseline, compared, settings.get("resamples"), settings.get("seed", 0))
    except metrics.Undefined:
        return None
    change = {key: finite(getattr(difference, key)) for key in ("value", "low", "high")}
    return None if change["value"] is None else change


def _unscored(metric, module, source):
    """The score without a value, for a cell whose images or features are not "ok"."""
    return {
        "status": source["status"],
        "reason": source["reason"],
        "metric": metric,
        "value": None,
        "low": None,
        "high": None,
        "change": None,  # difference from the baseline's value
        "n_images": source.get("n_images", source.get("n_items")),  # number of images or items scored
        "unit": module.UNIT,
        "higher_is_better": metric_entries.higher_is_better(metric),
        "library": f"{module.PACKAGE} {metadata.version(module.PACKAGE)}",
        "features": None,
        "resize": None,
        "reference": None,
        "reference_sha256": None,
        "prompts_sha256": source.get("prompts_sha256"),
        "level": intervals.LEVEL,
        "resamples": 0,
        "values": None,  # of single images or items in the manifest's order; None where the score is no mean of them
        "weights": None,  # of the values in the mean; None: all alike
        "log_values": False,  # whether they are logarithms, and the score is exp(mean)
        "provenance": provenance(dict.fromkeys(("numpy", "scipy", module.PACKAGE))),
    }


def _scored(module, settings, samples, compared):
    try:
        score = module.score(samples, compared, settings.get("resamples"), settings.get("seed", 0))
    except metrics.Undefined as error:
        return {"status": "unsupported", "reason": str(error)}
    value, low, high = (finite(x) for x in score[:3])
    if value is None:
        return {"status": "unsupported", "reason": f"its value is not a finite number ({score.value})."}
    reason = score.reason
    if low is None and high is None:
        reason = reason or "no interval: it needs at least two images or texts, each with a value."
    elif low is None or high is None:
        low, high, reason = None, None, reason or "no interval: one of its bounds is not a finite number."
    else:  # resampled means of equal values differ in the last bit
        low, high = min(low, value), max(high, value)
    scored = {"value": value, "low": low, "high": high, "resamples": score.resamples, "reason": reason}
    steps = {"by_step": [[finite(bound) for bound in step] for step in score.by_step]} if score.by_step else {}
    return scored | steps | (_of_items(score.of_items) if score.of_items else {})


def _of_items(items):
    """The values of single images or items, to six digits: JSON with all digits of 50,000 images has a megabyte.

    None is infinite, which JSON could not hold: equal images have a largest PSNR, perplexities are logarithms, and a
    score whose mean is not finite has no values.
    """
    weights = None if items.weights is None or (items.weights == items.weights[0]).all() else _short(items.weights)
    return {"values": _short(items.values), "weights": weights, "log_values": items.logs}


def _short(numbers):
    """Numbers of six digits, whole ones without a point."""
    shortened = (float(f"{number:.6g}") for number in np.asarray(numbers, np.float64))
    return [int(number) if number.is_integer() else number for number in shortened]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metric", required=True, choices=registry.names("metrics"))
    parser.add_argument(
        "--settings",
        type=json.loads,
        default={},
        help='JSON: {"resamples": N, null for the metric\'s default, "seed": 0}; other keys are ignored',
    )
    parser.add_argument("--images", help="manifest.json of the images, for a metric that compares pixels")
    parser.add_argument("--predictions", help="manifest.json of a text model's predictions")
    parser.add_argument("--baseline", help="manifest.json of the baseline's images or predictions")
    parser.add_argument("--is-baseline", action="store_true", help="the scored set is the baseline's")
    parser.add_argument("--features", help="EXTRACTOR.json of the images, for a metric that compares features")
    parser.add_argument("--reference-features", help="EXTRACTOR.json of the reference images, if the metric uses them")
    parser.add_argument("--baseline-features", help="EXTRACTOR.json of the baseline's images, to compute the change")
    parser.add_argument("--output", required=True, help="METRIC.json to write")
    args = parser.parse_args(argv)

    compared_with = metric_entries.compared_with(args.metric)
    of_pixels = metric_entries.features_of(args.metric) is None
    needed = {
        "baseline": ["images", *([] if args.is_baseline else ["baseline"])] if of_pixels else ["features"],
        "predictions": ["predictions"] if args.is_baseline else ["predictions", "baseline"],
        "text": ["features"],
        "classes": ["features"],
        "nothing": ["features"],
        "quality": ["features"],
        "reference": ["features", "reference_features"],
        "moments": ["features", "reference_features"],
    }[compared_with]
    if compared_with == "baseline" and args.is_baseline:  # it is known without features
        needed, of_pixels = ["images"], True
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    if missing:
        parser.error(f"{args.metric} needs {' and '.join(missing)}")
    if compared_with == "baseline" and of_pixels:
        result = score_against_baseline(args.metric, args.settings, args.images, args.baseline, args.is_baseline)
    elif compared_with == "predictions":
        result = score_predictions(args.metric, args.settings, args.predictions, args.baseline, args.is_baseline)
    else:
        baseline = None if args.is_baseline else args.baseline_features
        result = score_features(args.metric, args.settings, args.features, args.reference_features, baseline)
    write_json(args.output, result)


if __name__ == "__main__":
    command.run(main)
