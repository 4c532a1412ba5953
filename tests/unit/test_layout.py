"""Paths of results: one pattern for each file, and the rules that make the files."""

import re
from pathlib import Path

import pytest

from quantwatt.artifacts import layout

ROOT = Path(__file__).parents[2]
TAKEN = r'(?:parameters\(|plan\.log\(|plan\.benchmark\(|run\(|plan\.texts, |inputs\.\w+, plan, )\s*"(\w+)"'  # of a rule
CELL = {"model": "m", "method": "rtn-w4", "sampling": "steps-4"}


def test_a_path_of_a_cell():
    assert layout.path("results/x", "images", CELL) == Path("results/x/images/m/rtn-w4/steps-4/manifest.json")
    assert layout.path("r", "score", CELL | {"metric": "fid"}) == Path("r/scores/m/rtn-w4/steps-4/fid.json")
    assert layout.path("r", "report") == Path("r/report.html")


def test_a_name_that_is_missing_is_no_part_of_a_path():
    with pytest.raises(KeyError, match="sampling"):
        layout.path("r", "images", {"model": "m", "method": "n"})


def test_a_pattern_keeps_wildcards_for_what_is_not_known():
    assert layout.pattern("r", "checkpoint", {"method": "float32"}) == "r/checkpoints/{model}/float32/manifest.json"


def test_a_value_with_braces_stays_as_it_is():
    assert layout.pattern("r", "checkpoint", {"method": "{model}"}) == "r/checkpoints/{model}/{model}/manifest.json"


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("checkpoints", ["model", "method"]),
        ("allocation", ["model", "method"]),
        ("solved", ["backend", "model", "method"]),
        ("images", ["model", "method", "sampling"]),
        ("scores", ["model", "method", "sampling", "metric"]),
        ("costs", ["model", "sensitivity"]),
        ("tables", []),
        ("elsewhere", []),
    ],
)
def test_what_the_folders_below_one_are_named_by(folder, names):
    assert [name for name in layout.names_below(folder) if name] == names


def test_no_two_files_are_in_the_same_place():
    assert len(set(layout.FILES.values())) == len(layout.FILES)
    assert len(set(layout.JOBS.values())) == len(layout.JOBS)


def test_every_file_is_made_by_one_rule_and_every_rule_has_a_log_of_its_name():
    """One but for image sets, gathered where several jobs make them, and checkpoints, shared or of others."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    rules = re.findall(r"^(?:use rule \w+ as |rule )(\w+)(?: with)?:\n((?:    .*\n|\n)*)", text, flags=re.M)
    assert [name for name, _ in rules if name not in layout.JOBS] == []
    made = []
    for name, body in rules:
        made += re.findall(r'plan\.pattern\("(\w+)"', re.search(r"    output:\n((?:        .*\n)+)", body)[1])
        named = re.findall(TAKEN, body)
        assert named and set(named) == {name}, f"rule {name} takes something of another rule"
    assert sorted(made) == sorted([*layout.FILES, "images", "checkpoint", "checkpoint"])
