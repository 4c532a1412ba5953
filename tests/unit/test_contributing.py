"""CONTRIBUTING.md's checklists, followed step by step in a copy of the project."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
STEP = re.compile(
    r"^\d+\. (Write|Change|Copy|Use it|Run)\b(?: `([^`]+)`)?(?: to `([^`]+)`)?.*?\n\n {3}```\w+\n(.*?)\n {3}```$",
    flags=re.S | re.M,
)
CHECKLISTS = {
    title: [(*step, textwrap.dedent(text)) for *step, text in STEP.findall(body)]
    for title, body in re.findall(r"^### Add an? ([\w -]+)\n(.*?)(?=^##|\Z)", GUIDE, flags=re.S | re.M)
}
COPIED = ("workflow_scripts", "rules", "envs", "resources/schemas", "resources/experiments", "resources/prompts")
LINKED = ("resources/measurements", "resources/models", "resources/report", "resources/texts")


ACCEPTED = ("added", "added-models")  # experiments that use what is added
ACCEPTED_TEST = f"""
import pytest
from quantwatt.config.experiment import load_experiment

@pytest.mark.parametrize("name", {ACCEPTED})
def test_it_loads(name):
    load_experiment(name)
"""


def changed(text, diff):
    """A text after changes as `diff` writes them, one behind another: lines that stay begin with a space."""
    for hunk in diff.split("\n@@\n"):
        before, after = (
            "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[0] in kept) for kept in (" -", " +")
        )
        assert text.count(before) == 1, f"stands {text.count(before)} times:\n{before}"
        text = text.replace(before, after)
    return text


def merged(into, entries):
    for key, value in entries.items():
        into[key] = merged(into.get(key) or {}, value) if isinstance(value, dict) else value
    return into


def write_experiment(project, base, name, entries):
    """An experiment that is another one but for some entries; models are replaced."""
    folder = project / "resources/experiments"
    experiment = yaml.safe_load((folder / f"{base}.yaml").read_text())
    if "models" in entries:
        experiment["models"] = {}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(merged(experiment, entries), sort_keys=False))


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A copy of the project in which all checklists were followed, and what pytest says of the tests they add."""
    copy = tmp_path_factory.mktemp("project")
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in LINKED:
        (copy / name).symlink_to(ROOT / name)
    (copy / "tests/unit").mkdir(parents=True)
    for name in ("Snakefile", "config.yaml", "pyproject.toml", "tests/conftest.py", "tests/unit/tiny_text.py"):
        shutil.copy(ROOT / name, copy / name)
    added, used = [], {}
    for steps in CHECKLISTS.values():
        for word, name, other, text in steps:
            if word == "Write":
                assert not (copy / name).exists(), f"{name} is there already"
                (copy / name).write_text(f"{text}\n")
                added.append(name)
            elif word in ("Change", "Copy"):
                (copy / (other or name)).write_text(changed((copy / name).read_text(), text))
            elif word == "Use it":
                merged(used, yaml.safe_load(text))
    models = used.pop("models")
    write_experiment(copy, "smoke", "added", used)
    texts = {"texts": "resources/texts/reviews-test.tsv"}
    entries = {"models": models, "samplings": {"held-out": texts}, "calibration": texts}
    write_experiment(copy, "embedded-text", "added-models", entries)
    (copy / "tests/unit/test_accepted.py").write_text(ACCEPTED_TEST)
    tests = ["tests/unit/test_accepted.py", *(name for name in added if name.startswith("tests/"))]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *tests]
    done = subprocess.run(command, cwd=copy, text=True, capture_output=True)
    return copy, added, done.stdout


def test_every_kind_of_plugin_has_a_checklist():
    assert set(CHECKLISTS) == {"solver", "format", "kernel", "family", "metric", "meter"}
    for title, steps in CHECKLISTS.items():
        numbered = re.search(rf"^### Add an? {title}\n(.*?)(?=^##|\Z)", GUIDE, flags=re.S | re.M)[1]
        assert len(re.findall(r"^\d+\. ", numbered, flags=re.M)) == len(steps), f"{title}: a step is not followed here"


@pytest.mark.parametrize("title", CHECKLISTS)
def test_what_a_checklist_adds_loads_and_computes(followed, title):
    _, _, said = followed
    written = [name for word, name, *_ in CHECKLISTS[title] if word == "Write"]
    [tests] = [name for name in written if name.startswith("tests/")]
    ran = [text.split()[-1] for word, _, _, text in CHECKLISTS[title] if word == "Run"]
    assert ran == [tests], "the checklist runs the test that it adds"
    assert re.search(rf"^PASSED {re.escape(tests)}::", said, flags=re.M), said
    assert not re.search(rf"^(FAILED|ERROR) {re.escape(tests)}", said, flags=re.M), said


def test_what_checklists_add_is_clean(followed):
    copy, added, _ = followed
    modules = [name for name in added if name.endswith(".py")]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *modules], cwd=copy, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout


def test_an_experiment_may_use_all_that_checklists_add(followed):
    copy, _, said = followed
    assert re.findall(r"^PASSED tests/unit/test_accepted.py::test_it_loads\[([\w-]+)\]", said, flags=re.M) == [
        *ACCEPTED
    ]
    command = [sys.executable, "-m", "snakemake", "-n", "-q", "rules", "--config", "experiment=added"]
    done = subprocess.run(command, cwd=copy, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_that_guides_and_templates_name_exists():
    guides = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "Makefile")]
    guides += [*(ROOT / ".github").rglob("*.*ml"), *(ROOT / ".github").rglob("*.md"), ROOT / ".pre-commit-config.yaml"]
    added = {name for steps in CHECKLISTS.values() for word, *names, _ in steps if word != "Change" for name in names}
    named = r"(?<![\w/.])((?:workflow_scripts|resources|tests|rules|envs|\.ci)/[\w./-]*\w|[A-Z]+\.md|Makefile)"
    for guide in guides:
        for name in set(re.findall(named, guide.read_text())) - added - {"rules/NAME.smk"}:
            assert (ROOT / name).exists() or list(ROOT.glob(name + ".*")), f"{guide.name} names {name}"
