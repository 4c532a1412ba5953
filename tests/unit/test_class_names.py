"""Class names of labels become output numbers of a model, by the names in the model's configuration."""

import pytest

from quantwatt.artifacts.errors import DataError
from quantwatt.data import class_names
from quantwatt.score import predictions

USUAL = {0: "NEGATIVE", 1: "POSITIVE"}
TURNED = {0: "POSITIVE", 1: "NEGATIVE"}
GENERIC = {0: "LABEL_0", 1: "LABEL_1"}


def accuracy(labels, id2label, seen):
    """Of a model that sees `seen`, its own numbers."""
    items = [{"label": number, "logits": [float(number == own) for own in range(len(id2label))]} for number in seen]
    numbers, notes = class_names.numbers(labels, id2label)
    return sum(item["correct"] for item in predictions.judged(items, numbers)) / len(items), notes


@pytest.mark.parametrize(
    ("labels", "id2label", "seen"),
    [
        (["positive", "NEGATIVE", " Pos"], USUAL, [1, 0, 1]),
        (["positive", "NEGATIVE", "neg"], TURNED, [0, 1, 1]),
        (["LABEL_1", "label_0"], GENERIC, [1, 0]),
        ([1, 0, 1], USUAL, [1, 0, 1]),
        ([1, 0, 1], GENERIC, [1, 0, 1]),
        ([1, 0, 1], {}, [1, 0, 1]),
        ([1, 0, 1], TURNED, [0, 1, 0]),  # GLUE's SST-2 calls 1 positive, whatever the model's order
        ([0, 1, 2], {0: "positive", 1: "negative", 2: "neutral"}, [1, 2, 0]),
        ([2, 0], {0: "joy", 1: "anger", 2: "fear"}, [2, 0]),
        (["fear", "Joy"], {"0": "joy", "1": "anger", "2": "fear"}, [2, 0]),
        ([0, 1], {0: "acceptable", 1: "unacceptable"}, [1, 0]),
    ],
)
def test_a_model_that_sees_the_truth_is_right(labels, id2label, seen):
    id2label = id2label or GENERIC
    assert accuracy(labels, id2label, seen)[0] == 1


def test_what_numbers_are_taken_for_is_told():
    assert accuracy([1], TURNED, [0])[1] == [
        "labels are read as 0: negative, 1: positive, and the model's own are 0: positive, 1: negative"
    ]
    assert accuracy([1], {0: "joy", 1: "fear"}, [1])[1] == ["labels are the model's numbers (0: joy, 1: fear)"]
    assert accuracy([1], USUAL, [1])[1] == accuracy([1], GENERIC, [1])[1] == []


@pytest.mark.parametrize(
    ("labels", "id2label", "label2id", "words"),
    [
        (["good"], USUAL, None, "the label 'good', and the model's classes are called 0: negative, 1: positive"),
        (["positive"], GENERIC, None, "'positive', and the model's classes are called 0: label_0, 1: label_1"),
        (["a"], {0: "a", 1: "A"}, None, "calls two classes 'a'"),
        ([1], USUAL, {"POSITIVE": 0, "NEGATIVE": 1}, "contradicts itself: label2id says POSITIVE is 0"),
    ],
)
def test_names_that_nothing_stands_for(labels, id2label, label2id, words):
    with pytest.raises(DataError, match=words):
        class_names.numbers(labels, id2label, label2id)


def test_a_configuration_with_one_half_of_its_names_is_read_by_those():
    assert class_names.numbers(["positive"], USUAL, {"LABEL_0": 0, "LABEL_1": 1}) == ([1], [])


def test_a_number_that_the_model_does_not_have_is_refused_in_any_order():
    with pytest.raises(DataError, match="the label 2, and the model knows 2"):
        accuracy([2], TURNED, [0])
