"""What a metric compares and how it is shown, from its schema: planning and the report import no metric's module.

A schema of resources/schemas/metrics/ has, in addition to its settings,

    "x-kind": "text"            the kind of experiments with this metric; default: "image"
    "x-compared-with": WORD     what `score` compares with: "baseline" (the unquantized model's images),
                                "predictions" (of the unquantized text model), "text" (features of the prompts),
                                "classes" (the requested classes), "reference" (features of real images), "moments"
                                (of the features of real images), "quality" (features
                                of texts that call an image good and bad) or "nothing"
    "x-features": WORD          the extractor of the image features that `score` reads: "judge", "classifier", an entry
                                of the experiment's `extractors`, or "distance" for the extractor that the experiment
                                uses for distances; missing: `score` reads images or predictions
    "x-array": WORD             which of the extractor's arrays `score` reads; default: "image", the features; of
                                classes "classes"
    "x-reads": "trajectory"     `score` reads the latents that were kept of each image, in place of its pixels
    "x-higher-is-better": true or false
    "x-depends-on-count": true  the value depends on the number of images: only equal numbers are compared
    "x-pairs": {"matrices": N, "most_images": N}
                                number of float64 matrices of all pairs of images in memory, up to this many images
    "x-shown": {...}            fields of `Metric`, and "place", the position in the report, which also decides which
                                metric is looked at first; "place_across_steps": position where samplings differ in
                                steps
"""

import functools
from dataclasses import dataclass
from typing import Any

from quantwatt.artifacts.errors import DataError
from quantwatt.registry import names, schema

WITH_REFERENCE = ("reference", "moments")  # values of "x-compared-with" that need real images
LAST = 1000  # the place of a metric without "place"


@dataclass(frozen=True)
class Metric:
    """How a metric is shown in tables, figures and report.

    column: of the summary.
    title: heading in the report.
    name: name in words, for an axis or a sentence.
    paired: whether each image is compared with the baseline's; else the baseline has a value, too, and methods are
        reported as a change to it.
    published_features: the extractor whose features are needed for comparisons with published values, or None.
    acceptable: the value from which on a method is recommended, or, of a metric that is not paired, how much worse than
        the baseline's it may be; None: not recommended by this metric unless the configuration says so.
    words: [[least value, what it looks like]], the best first, of a metric that says what is seen.
    scale: (worst, best) value, the ends of a bar; None: the metric has no scale of its own, and no bar.
    """

    column: str
    title: str
    name: str
    unit: str = ""
    higher_is_better: bool = True
    paired: bool = False
    published_features: str | None = None
    acceptable: float | None = None
    words: tuple[tuple[float, str], ...] = ()
    scale: tuple[float, float] | None = None


def compared_with(metric: str) -> str:
    """The schema's "x-compared-with": what the metric compares with.

    Raises:
        DataError: the schema does not have the key.
    """
    return _said(metric, "x-compared-with")


def compares_with_reference(metric: str) -> bool:
    """Whether the metric compares with real images."""
    return compared_with(metric) in WITH_REFERENCE


def features_of(metric: str) -> str | None:
    """The extractor of the compared features: its name, or "distance" for the experiment's choice.

    Returns:
        None for a metric that reads images or predictions.
    """
    return schema(f"metrics/{metric}").get("x-features")


def array_of(metric: str) -> str:
    """The extractor's array that the metric scores."""
    default = "classes" if compared_with(metric) == "classes" else "image"
    return schema(f"metrics/{metric}").get("x-array", default)


def reads_pairs(extractor: str) -> bool:
    """Whether an extractor reads images together with the baseline's."""
    return extractor in names("extractors") and schema(f"extractors/{extractor}").get("x-reads") == "pairs"


def reads_trajectories(metric: str) -> bool:
    """Whether the metric compares latents, which a sampling keeps with its key `trajectory`."""
    return schema(f"metrics/{metric}").get("x-reads") == "trajectory"


def depends_on_count(metric: str) -> bool:
    """Whether the value depends on the number of images, so that only equal numbers can be compared."""
    return schema(f"metrics/{metric}").get("x-depends-on-count", False)


def higher_is_better(metric: str) -> bool:
    """Whether a higher value is better.

    Raises:
        DataError: the schema does not have the key.
    """
    return _said(metric, "x-higher-is-better")


@functools.cache
def shown(first: str = "place") -> dict[str, Metric]:
    """{metric: Metric} of all metrics with a schema, in the report's order.

    Args:
        first: the key to sort by: "place", or "place_across_steps" for comparing samplings that differ in steps.
    Raises:
        DataError: a schema lacks a key, or two metrics have the same column.
    """
    places = {name: _said(name, "x-shown") for name in names("metrics")}
    order = sorted(places, key=lambda name: [places[name].get(key, LAST) for key in (first, "place")])
    metrics = {name: _metric(name, places[name]) for name in order}
    columns = {}
    for name, metric in metrics.items():
        if (other := columns.setdefault(metric.column, name)) != name:
            raise DataError(f"{_file(name)}: x-shown.column: '{metric.column}' is also that of '{other}'.")
    return metrics


def words() -> dict[str, dict[str, Any]]:
    """The schemas' keys that tables, figures and the report depend on; a change reruns them."""
    return {name: {key: _said(name, key) for key in ("x-compared-with", "x-higher-is-better", "x-shown")}
            for name in names("metrics")}  # fmt: skip


def _metric(name, entry):
    fields: dict[str, Any] = {"column": name.replace("-", "_"), "higher_is_better": higher_is_better(name)}
    fields |= {key: value for key, value in entry.items() if not key.startswith("place")}
    fields["words"] = tuple(map(tuple, entry.get("words", ())))
    fields["scale"] = tuple(entry["scale"]) if "scale" in entry else None
    try:
        return Metric(**fields, paired=compared_with(name) == "baseline")
    except TypeError as error:  # "missing 1 required positional argument: 'title'"
        raise DataError(f"{_file(name)}: x-shown: {str(error).split('() ')[-1]}.") from error


def _said(metric, key):
    try:
        return schema(f"metrics/{metric}")[key]
    except KeyError:
        raise DataError(f"{_file(metric)}: {key}: missing.") from None


def _file(metric):
    return f"resources/schemas/metrics/{metric}.schema.json"
