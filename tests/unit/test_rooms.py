"""A stage's name leads to its rule, script, room and test."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "workflow_scripts"
MAP = ROOT / "docs/code-map.md"
NEIGHBOURS = {"benchmarks", "quantwatt", "tools", "training"}
OF_ANOTHER = {"reference_features": "features"}  # rules that run another one's script


def packages(folder):
    """Folders of a folder that hold modules: Python leaves folders behind that git has moved."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and list(path.glob("*.py")))


ROOMS = packages(SCRIPTS / "quantwatt")


def rules():
    """{name: text} of every rule."""
    text = "".join(path.read_text() for path in sorted((ROOT / "rules").glob("*.smk")))
    parts = re.split(r"^(?:use )?rule (\w+)", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def stages():
    """Rows of the table of stages, as lists of cells."""
    text = MAP.read_text()
    table = text[text.index("| stage | rules |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_each_rule_runs_the_script_of_its_name():
    scripts = {path.stem for path in SCRIPTS.glob("*.py")}
    assert scripts == {name for name in rules() if name not in OF_ANOTHER}
    assert {path.name for path in packages(SCRIPTS)} == NEIGHBOURS


def test_the_map_leads_from_every_stage_to_what_there_is():
    named = set()
    for stage, files, scripts, rooms, tests, _ in stages():
        paths = re.findall(r"\]\(([^)]+)\)", files + rooms)
        assert paths and all((MAP.parent / path).exists() for path in paths), stage
        found = re.findall(r"`(\w+)`", tests)
        assert found and all(list((ROOT / "tests").rglob(f"{name}.py")) for name in found), stage
        named |= set(re.findall(r"`(\w+)`", scripts))
    assert named == {path.stem for path in SCRIPTS.glob("*.py")}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_its_input_its_output_and_what_to_read_first(room):
    words = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert all(word in words for word in ("Input:", "Output:", "Read first:"))
    for name in re.findall(r"\b([a-z_/]+\.py)\b", words.partition("Read first")[2]):
        assert (room / name).exists()
    assert re.search(rf"`?{room.name}", MAP.read_text())
