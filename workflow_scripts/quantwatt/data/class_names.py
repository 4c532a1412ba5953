"""What a classifier calls its classes, so that labels of texts are compared with the outputs that they mean."""

import re

from quantwatt.artifacts import text_files
from quantwatt.artifacts.errors import DataError

GENERIC = re.compile(r"label_\d+")  # what transformers calls classes that nobody has named
SHORT = {"neg": "negative", "neu": "neutral", "pos": "positive"}
USUAL = (  # the numbers that data sets of sentences give to such names: GLUE's SST-2 and CoLA, TweetEval, SMS Spam
    ("negative", "positive"),
    ("negative", "neutral", "positive"),
    ("unacceptable", "acceptable"),
    ("ham", "spam"),
)


def of_outputs(labels, model, path):
    """Labels of a file's texts as numbers of a transformers model's outputs; what was done to them is said.

    Returns:
        as `numbers`.
    Raises:
        DataError: as `numbers`; names the file.
    """
    if labels is None:
        return None, []
    try:
        found, notes = numbers(labels, model.config.id2label, model.config.label2id)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    text_files.say(f"{path}, labels", notes)
    return found, notes


def numbers(labels, id2label, label2id=None):
    """Labels of texts as numbers of a model's outputs, and what was done to them.

    Names are looked up in the model's own, in upper or lower case. Whole numbers are the model's, but for models whose
    names are of a kind that data sets number alike: there they are the data set's, whatever the model's order.

    Args:
        labels: whole numbers or names, one a text.
        id2label, label2id: the model's configuration's, {number: name} and {name: number}.
    Returns:
        (whole numbers, one a text; list of notes, sentences without a full stop).
    Raises:
        DataError: a name that the model does not have, or that two of its classes have; names that its configuration
            numbers in two ways.
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
    usual = next((order for order in USUAL if sorted(order) == sorted(names.values())), None)
    if not named or usual is None:
        return labels, [f"labels are the model's numbers ({_shown(names)})"] if named else []
    place = {name: number for number, name in names.items()}
    order = [place[name] for name in usual]
    if order == list(range(len(order))):
        return labels, []
    found = [order[label] if label < len(order) else label for label in labels]
    return found, [f"labels are read as {_shown(dict(enumerate(usual)))}, and the model's own are {_shown(names)}"]


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
