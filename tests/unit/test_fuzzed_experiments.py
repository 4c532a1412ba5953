"""Randomly broken experiments: one sentence that names the file, no other exception, and no job starts."""

import copy
import string

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantwatt.config import experiment

FILE = "resources/experiments/mine.yaml"
SHIPPED = {path.stem: path.read_text() for path in sorted(experiment.EXPERIMENTS.glob("*.yaml"))}
RAW = {name: yaml.safe_load(text) for name, text in SHIPPED.items()}
WORDS = ("", "..", "../x", "/etc/passwd", "{model}", "$(true)", "a\nb", "nf4\n", "\0", "\ud800", "é" * 300, "~", "auto",
         "group", "tensor", "integer", "gptq", "rtn", "mixed", "uniform", "data/imagenet/train")  # fmt: skip
NUMBERS = (0, -1, 1, 3, 10**30, -(10**30), 0.0, 0.5, 4.0, 1e308, float("nan"), float("inf"))
scalars = st.sampled_from((None, True, False, *NUMBERS, *WORDS))
keys = st.one_of(st.sampled_from(WORDS), st.integers(-1, 3), st.none(), st.booleans(), st.text(string.printable))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)


def places(value, path=()):
    """The path of every part of nested mappings and lists."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*path, key))


PLACES = {name: list(places(raw))[1:] for name, raw in RAW.items()}


def has(part, key):
    """Whether there is something under this key, or at this place of a list."""
    if isinstance(part, list):
        return isinstance(key, int) and key < len(part)
    return isinstance(part, dict) and key in part


@st.composite
def broken(draw):
    """A shipped experiment, changed in one to three places: a part is replaced, removed, renamed or put elsewhere."""
    name = draw(st.sampled_from(sorted(RAW)))
    raw = copy.deepcopy(RAW[name])
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(PLACES[name]))
        part = raw
        for key in parents:
            part = part[key] if has(part, key) else None
        if not has(part, last):
            continue  # an earlier change took it away
        changes = ("replace",) if isinstance(part, list) else ("replace", "remove", "rename", "add", "take")
        change = draw(st.sampled_from(changes))
        if change == "replace":
            part[last] = draw(values)
        elif change == "remove":
            del part[last]
        elif change == "rename":
            part[draw(keys)] = part.pop(last)
        elif change == "add":
            part[draw(keys)] = draw(values)
        else:  # a part of the same experiment that belongs elsewhere
            found = RAW[name]
            for key in draw(st.sampled_from(PLACES[name])):
                found = found[key]
            part[last] = copy.deepcopy(found)
    return raw


def judge(read):
    """What `read` returns is complete; what it raises is one sentence that begins with the file."""
    try:
        assert read()["cells"]
    except experiment.ConfigurationError as error:
        sentence = str(error)
        assert sentence.startswith(f"{FILE}:") and sentence.endswith(".") and sentence.isprintable(), sentence
        assert len(sentence) < 1500, sentence


def with_prompts(path):
    raw = copy.deepcopy(RAW["smoke"])
    raw["samplings"]["steps-4"]["prompts"] = path
    return raw


def fuzzing(max_examples):
    return settings(derandomize=True, deadline=None, max_examples=max_examples, database=None)


@fuzzing(150)
@given(broken())
@example(with_prompts("é" * 300))
@example(with_prompts(f"{'é' * 300}/prompts.txt"))
@example(with_prompts("resources/models/digits/model.safetensors"))
def test_a_broken_experiment_is_a_sentence(raw):
    judge(lambda: experiment.check_experiment(raw, FILE))


@pytest.mark.slow
@fuzzing(600)
@given(broken())
def test_more_broken_experiments_are_sentences(raw):
    judge(lambda: experiment.check_experiment(raw, FILE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("broken")


BROKEN_TEXTS = (
    st.sampled_from(sorted(SHIPPED)),
    st.integers(0, 8000),
    st.integers(0, 30),
    st.text("{}[]:,-&*!|>'\"%@`#?\t\n\\ ab1\0é\u2028", max_size=6) | st.binary(max_size=4),
)


@fuzzing(100)
@given(*BROKEN_TEXTS)
@example("smoke", 0, 0, b"\xff\xfe\xff")
@example("smoke", 0, 0, "a: &a [*a]\n")
@example("smoke", 0, 0, "? [1, 2]\n: 3\n")
@example("smoke", 0, 0, "2026-11-22: 2026-11-22\n")
@example("smoke", 0, 0, "!!python/object/apply:os.system [true]\n")
@example("smoke", 0, 8000, "[" * 5000)
def test_broken_text_is_a_sentence(folder, name, start, length, inserted):
    judge_text(folder, name, start, length, inserted)


@pytest.mark.slow
@fuzzing(300)
@given(*BROKEN_TEXTS)
def test_more_broken_texts_are_sentences(folder, name, start, length, inserted):
    judge_text(folder, name, start, length, inserted)


def judge_text(folder, name, start, length, inserted):
    """`judge` an experiment's file with some bytes in the place of others."""
    text = SHIPPED[name].encode()
    start = min(start, len(text))
    inserted = inserted if isinstance(inserted, bytes) else inserted.encode()
    path = folder / "mine.yaml"
    path.write_bytes(text[:start] + inserted + text[start + length :])
    judge(lambda: experiment.check_experiment(experiment.read_yaml(path, FILE), FILE))
