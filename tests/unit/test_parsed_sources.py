"""What planning remembers of sources is never wrong for a file, whatever happened to the file or to the memory."""

import json

import pytest

from quantwatt.jobs import dependencies

SOURCE = "import math\nfrom quantwatt.score import mmd\n"


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Function that hashes a script as a program of its own does; returns (hash, names of the files that it parsed)."""
    scripts = tmp_path / "workflow_scripts"
    (scripts / "quantwatt/score").mkdir(parents=True)
    monkeypatch.setattr(dependencies, "SCRIPTS", scripts)
    parse, caches = dependencies.parse, (dependencies._sources, dependencies._parsed, dependencies._read,
                                         dependencies._files_of)  # fmt: skip

    def run():
        parsed = []
        monkeypatch.setattr(dependencies, "parse", lambda source, where: parsed.append(where) or parse(source, where))
        for cached in caches:
            cached.cache_clear()
        return dependencies.digest.__wrapped__("job.py"), [where.rpartition("/")[2] for where in parsed]

    run.path = tmp_path / dependencies.SOURCES
    (scripts / "job.py").write_text(SOURCE)
    (scripts / "quantwatt/score/mmd.py").write_text("VALUE = 1\n")
    yield run
    for cached in caches:
        cached.cache_clear()


def test_what_did_not_change_is_not_parsed_again(planned):
    first, parsed = planned()
    assert sorted(parsed) == ["job.py", "mmd.py"] and planned() == (first, [])
    module = dependencies.SCRIPTS / "quantwatt/score/mmd.py"
    module.write_text("VALUE = 2\n")
    second, parsed = planned()
    assert parsed == ["mmd.py"] and second != first and planned() == (second, [])
    module.write_text("VALUE = 1\n")
    assert planned() == (first, [])  # it was parsed before
    (dependencies.SCRIPTS / "job.py").write_text("import math\n")
    assert planned()[0] not in (first, second) and [path.name for path in dependencies.closure("job.py")] == ["job.py"]


def test_a_memory_of_other_code_is_not_read(planned, monkeypatch):
    first, parsed = planned()
    monkeypatch.setattr(dependencies, "VERSION", "of another release")
    assert planned() == (first, parsed)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"KEY": null}', '{"KEY": ["x", []]}', "KEY", b"\xff"])
def test_a_broken_memory_is_empty(planned, content):
    found = planned()
    key = next(iter(json.loads(planned.path.read_text())))
    content = content.encode() if isinstance(content, str) else content
    planned.path.write_bytes(content.replace(b"KEY", key.encode()))
    assert planned() == found


def test_a_memory_that_cannot_be_written_is_done_without(planned):
    planned.path.parent.write_text("a file")
    first, parsed = planned()
    assert planned() == (first, parsed) and len(parsed) == 2
