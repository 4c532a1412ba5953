"""README and docs/ are true: generated pages, links, commands, examples, and the sentences that tell mistakes."""

import ast
import contextlib
import copy
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from quantwatt.artifacts import layout
from quantwatt.config import command_line, experiment, yaml_files
from quantwatt.config.schemas import ConfigurationError, complete
from quantwatt.registry import schema
from tools import reference_pages
from tools.documentation import commands, results, settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = {path.name: path.read_text() for path in PAGES}
OWN = ("mine", "STUDY")  # experiments that a reader writes
MAKE = (ROOT / "Makefile").read_text()


def blocks(language):
    """(page, text) of every fenced block of a language."""
    for page, text in WRITTEN.items():
        yield from ((page, found) for found in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))


def lines():
    """(page, words) of every line of the shell, comments left out."""
    for page, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield page, words


def is_experiment(name):
    return name in OWN or (experiment.EXPERIMENTS / f"{name}.yaml").exists()


def test_readme_is_read_on_one_or_two_screens():
    assert len(WRITTEN["README.md"].splitlines()) <= 150


def test_the_reference_is_what_the_code_says():
    """If not: `make reference`."""
    pages = reference_pages.pages()
    assert {path.name for path in reference_pages.REFERENCE.iterdir()} == set(pages)
    for name, text in pages.items():
        assert (reference_pages.REFERENCE / name).read_text() == text, f"{name}: make reference"


@pytest.mark.parametrize("name", settings.every_schema())
def test_every_key_of_a_schema_has_a_description(name):
    assert [key for key, value, _ in settings.keys(name) if not value.get("description")] == []


def test_every_file_of_a_result_is_told():
    assert results.FILES.keys() == layout.FILES.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_a_file_and_to_a_heading_of_it(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            assert file.exists(), f"{page.name}: {target}"
            headings = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}


def test_commands_of_make_are_goals():
    for page, (program, *words) in lines():
        if program == "make":
            goals = [word for word in words if "=" not in word]
            assert all(re.search(rf"^{goal}:", MAKE, re.MULTILINE) for goal in goals), (page, words)
            given = [word.partition("=")[0] for word in words if "=" in word]
            assert all(re.search(rf"\b{name}\b", MAKE) for name in given), (page, words)
            asked = [word.partition("=")[2] for word in words if word.startswith("EXPERIMENT=")]
            assert all(is_experiment(name) for name in asked), (page, words)


def test_commands_of_snakemake_are_read_by_it():
    from snakemake.cli import get_argument_parser

    parser = get_argument_parser()
    found = 0
    for page, (program, *words) in lines():
        if program == ".venv/bin/snakemake":
            found += 1
            asked = parser.parse_args(words)
            if not asked.configfile:  # which a reader writes
                command_line.check(words)
            given = experiment.values(asked.config)
            assert given.keys() <= schema("config")["properties"].keys(), (page, words)
            name = given.get("experiment", "smoke")
            assert is_experiment(name), (page, words)
    assert found >= 15


def test_commands_of_scripts_are_read_by_their_parsers():
    found = 0
    for page, (program, *words) in lines():
        if program == ".venv/bin/python" and words[0].startswith("workflow_scripts/"):
            found += 1
            module = words[0].removeprefix("workflow_scripts/").removesuffix(".py").replace("/", ".")
            parser = commands.parser_of(importlib.import_module(module).main)
            if "--help" not in words:
                with contextlib.suppress(SystemExit):
                    parser.parse_args(words[1:])
                    continue
                pytest.fail(f"{page}: {' '.join(words)}")
    assert found >= 4


def test_every_command_is_one_that_is_checked():
    known = {"make", ".venv/bin/snakemake", ".venv/bin/python", "export"}
    assert {words[0] for _, words in lines()} <= known


def test_blocks_of_python_are_python():
    assert [ast.parse(text) for _, text in blocks("python")]


def test_the_tutorials_experiment_is_one():
    [text] = [text for page, text in blocks("yaml") if page == "your-model.md"]
    completed = experiment.check_experiment(yaml_files.parse(text, "mine.yaml"), "mine.yaml")
    assert completed["methods"].keys() == {"original", "w8a8", "gptq-w4"}


def test_the_tutorials_policy_is_one():
    [text] = [text for page, text in blocks("yaml") if page == "choose.md"]
    complete(yaml_files.parse(text, "gate.yaml"), schema("gate"), "gate.yaml", "")


def test_methods_that_are_shown_are_methods():
    shown = [yaml.safe_load(text) for page, text in blocks("yaml") if page in ("README.md", "methods.md")]
    methods = [entry["methods"] for entry in shown if isinstance(entry, dict) and set(entry) == {"methods"}]
    assert len(methods) == 2
    for entries in methods:
        for name, entry in entries.items():
            assert experiment.complete_method(entry, "page", name)["weights"]["bits"] == 4


SMOKE = yaml_files.read_yaml(experiment.EXPERIMENTS / "smoke.yaml", "smoke.yaml")
MISTAKES = re.findall(r"^\| `([^|]+)` \| `([^|]+)` \|", WRITTEN["faq.md"], re.MULTILINE)


@pytest.mark.parametrize(("written", "said"), MISTAKES)
def test_a_mistake_is_told_as_the_page_says(written, said):
    with pytest.raises((ConfigurationError, SystemExit)) as caught:
        make(written)
    assert said in str(caught.value)


def make(written):
    """Make a mistake of the page: a command line, settings behind --config, or a changed experiment."""
    if written.startswith("snakemake "):
        command_line.check(written.split()[1:])
    elif written.startswith("--config "):
        experiment.load_config([("--config", experiment.values(written.split()[1:]))])
    else:
        experiment.check_experiment(changed(written), "mine.yaml")


def changed(written):
    """The smallest experiment with an entry `a.b.c: VALUE` changed."""
    keys, _, value = written.partition(": ")
    *parents, last = keys.split(".")
    raw = part = copy.deepcopy(SMOKE)
    for key in parents:
        part = part[key]
    part[last] = yaml.safe_load(value)
    return raw


def test_the_page_of_mistakes_has_some():
    assert len(MISTAKES) >= 15
