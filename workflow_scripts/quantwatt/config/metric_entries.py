"""What a metric compares and how it is shown, told by its schema: planning and the report import no metric's module.

A schema of resources/schemas/metrics/ has, beside its settings,

    "x-kind": "text"            the experiments it is of, "image" where missing
    "x-compared-with": WORD     what `score` is given to compare with: "baseline" (the unquantized model's images),
                                "predictions" (a text model's own), "text" (features of the prompts), "classes" (those
                                asked for), "reference" (features of real images) or "moments" (of those)
    "x-features": WORD          whose features of images `score` is given: the "judge"'s, the "classifier"'s, or for
                                "distance" those that the experiment measures distances by; missing: images themselves
    "x-higher-is-better": true or false
    "x-pairs": {"matrices": N, "most_images": N}
                                where it holds float64 matrices of all pairs of images, for up to so many of them
    "x-shown": {...}            a `Metric`'s fields, and "place": in the report's order, which also says what is looked
                                at first; "place_across_steps": likewise where the number of steps changes
"""

import functools
from dataclasses import dataclass

from quantwatt.artifacts.errors import DataError
from quantwatt.registry import names, schema

WITH_REFERENCE = ("reference", "moments")  # what stands for real images
LAST = 1000  # the place of a metric that names none


@dataclass(frozen=True)
class Metric:
    """How a metric stands in tables, figures and report.

    column: of the summary.
    title: its heading in the report.
    name: its name in words, on an axis or in a sentence.
    paired: each image is compared with the baseline's; else the baseline has a value too, and methods a change to it.
    published_features: the extractor without whose features a figure cannot be compared with published ones, or None.
    """

    column: str
    title: str
    name: str
    unit: str = ""
    higher_is_better: bool = True
    paired: bool = False
    published_features: str | None = None


def compared_with(metric: str) -> str:
    """The word for what its `score` compares with.

    Raises:
        DataError: its schema says none.
    """
    return _said(metric, "x-compared-with")


def compares_with_reference(metric: str) -> bool:
    """Whether it compares with real images."""
    return compared_with(metric) in WITH_REFERENCE


def features_of(metric: str) -> str | None:
    """What extracts the features that it compares: "judge", "classifier", or "distance" for what the experiment has.

    Returns:
        None where it reads images or predictions themselves.
    """
    return schema(f"metrics/{metric}").get("x-features")


def higher_is_better(metric: str) -> bool:
    """Whether more of it is better.

    Raises:
        DataError: its schema does not say.
    """
    return _said(metric, "x-higher-is-better")


@functools.cache
def shown(first: str = "place") -> dict[str, Metric]:
    """{metric: Metric} of all that have a schema, in the report's order.

    Args:
        first: "place", or "place_across_steps" for the order in which samplings of other steps are compared.
    Raises:
        DataError: a schema says too little, or two metrics have one column.
    """
    places = {name: _said(name, "x-shown") for name in names("metrics")}
    order = sorted(places, key=lambda name: [places[name].get(key, LAST) for key in (first, "place")])
    found = {name: _metric(name, places[name]) for name in order}
    columns = {}
    for name, metric in found.items():
        if (other := columns.setdefault(metric.column, name)) != name:
            raise DataError(f"{_file(name)}: x-shown.column: '{metric.column}' is also that of '{other}'.")
    return found


def words() -> dict[str, dict]:
    """All that tables, figures and the report show of metrics: what reruns them."""
    return {name: {key: _said(name, key) for key in ("x-compared-with", "x-higher-is-better", "x-shown")}
            for name in names("metrics")}  # fmt: skip


def _metric(name, entry):
    fields = {key: value for key, value in entry.items() if not key.startswith("place")}
    try:
        return Metric(
            **{"column": name.replace("-", "_"), "higher_is_better": higher_is_better(name)} | fields,
            paired=compared_with(name) == "baseline",
        )
    except TypeError as error:  # "missing 1 required positional argument: 'title'"
        raise DataError(f"{_file(name)}: x-shown: {str(error).split('() ')[-1]}.") from error


def _said(metric, key):
    try:
        return schema(f"metrics/{metric}")[key]
    except KeyError:
        raise DataError(f"{_file(metric)}: {key}: missing.") from None


def _file(metric):
    return f"resources/schemas/metrics/{metric}.schema.json"
