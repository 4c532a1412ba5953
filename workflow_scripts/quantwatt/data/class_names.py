"""Map labels of texts to a classifier's outputs, by the names that the model gives its classes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantwatt.artifacts import text_files
from quantwatt.artifacts.errors import DataError

GENERIC = re.compile(r"label_\d+")  # transformers' default names of classes
SHORT = {"neg": "negative", "neu": "neutral", "pos": "positive"}
USUAL = (  # names in the order in which data sets number them: GLUE's SST-2 and CoLA, TweetEval, SMS Spam
    ("negative", "positive"),
    ("negative", "neutral", "positive"),
    ("unacceptable", "acceptable"),
    ("ham", "spam"),
)


def of_outputs(
    labels: list[int] | list[str] | None, model: Any, path: str | Path
) -> tuple[list[int] | None, list[str]]:
    """Convert labels of a file's texts to output numbers of a transformers model; notes are printed.

    Returns:
        as `numbers` returns; (None, []) without labels.
    Raises:
        DataError: see `numbers`; names the file.
    """
    if labels is None:
        return None, []
    try:
        outputs, notes = numbers(labels, model.config.id2label, model.config.label2id)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    text_files.say(f"{path}, labels", notes)
    return outputs, notes


def numbers(
    labels: list[int] | list[str], id2label: Mapping[Any, Any] | None, label2id: Mapping[Any, int] | None = None
) -> tuple[list[int], list[str]]:
    """Convert labels of texts to output numbers of a model, with notes on the conversion.

    Names are looked up among the model's class names, ignoring case. Whole numbers are the model's output numbers. The
    exception: if the model's class names are one of USUAL, numbers follow the order that data sets use.

    Args:
        labels: whole numbers or names, one per text.
        id2label, label2id: from the model's configuration, {number: name} and {name: number}.
    Returns:
        (whole numbers, one per text; list of notes, sentences without a full stop).
    Raises:
        DataError: the model has no class of a name, or two; or its configuration contradicts itself.
    """
    names = {int(number): _plain(name) for number, name in (id2label or {}).items()}
    for name, number in (label2id or {}).items():
        if names.get(number) != _plain(name) and _plain(name) in names.values():
            raise DataError(
                f"the model's config.json contradicts itself: label2id says {name} is {number}, and id2label that "
                f"{number} is {names.get(number)}; correct it."
            )
    named = not all(GENERIC.fullmatch(name) for name in names.values())
    if isinstance(labels[0], str):
        return _looked_up(labels, names), []
    whole: list[int] = labels  # ty: ignore[invalid-assignment]  (labels are all of one type)
    usual = next((order for order in USUAL if sorted(order) == sorted(names.values())), None)
    if not named or usual is None:
        return whole, [f"labels are the model's numbers ({_shown(names)})"] if named else []
    place = {name: number for number, name in names.items()}
    order = [place[name] for name in usual]
    if order == list(range(len(order))):
        return whole, []
    outputs = [order[label] if label < len(order) else label for label in whole]
    return outputs, [f"labels are read as {_shown(dict(enumerate(usual)))}, and the model's own are {_shown(names)}"]


def _looked_up(labels, names):
    place = {}
    for number, name in names.items():
        if name in place:
            raise DataError(f"the model calls two classes {name!r}: labels must be whole numbers.")
        place[name] = number
    for label in labels:
        if _plain(label) not in place:
            raise DataError(
                f"a text has the label {label!r}, and the model's classes are called {_shown(names) or 'nothing'}; "
                "write the labels by these names, or as whole numbers."
            )
    return [place[_plain(label)] for label in labels]


def _plain(name):
    name = str(name).strip().lower()
    return SHORT.get(name, name)


def _shown(names):
    return ", ".join(f"{number}: {name}" for number, name in sorted(names.items()))
