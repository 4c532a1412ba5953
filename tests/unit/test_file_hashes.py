"""Cached file hashes: never a wrong hash, whatever happened to the file or to the cache."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from quantwatt.artifacts import file_hashes
from quantwatt.artifacts.file_hashes import FileHashes


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once, so that a test need not wait."""
    monkeypatch.setattr(file_hashes, "SETTLED_NS", -(10**12))


@pytest.fixture
def reads(monkeypatch):
    """The files that are read for their hash, one after another."""
    seen, sha256 = [], file_hashes.sha256
    monkeypatch.setattr(file_hashes, "sha256", lambda path: seen.append(Path(path).name) or sha256(path))
    return seen


def ask(memory, path):
    with FileHashes(memory) as hashes:
        return hashes.sha256(path)


def plain(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_read_once_for_each_of_its_states(tmp_path, settled, reads):
    path, memory = tmp_path / "weights", tmp_path / "new/hashes.json"
    path.write_text("a")
    assert ask(memory, path) == ask(memory, path) == plain(path) and reads == ["weights"]
    times = path.stat()
    path.write_text("b")  # of the same size, and as if at the same time
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert ask(memory, path) == plain(path) and len(reads) == 2
    other = tmp_path / "other"
    other.write_text("c")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert ask(memory, path) == plain(path) and len(reads) == 3
    assert [entry.name for entry in memory.parent.iterdir()] == ["hashes.json"]


def test_a_link_is_known_by_what_it_leads_to(tmp_path, settled, reads):
    for name in "ab":
        (tmp_path / name).write_text(name)
    link, memory = tmp_path / "link", tmp_path / "hashes.json"
    link.symlink_to(tmp_path / "a")
    assert ask(memory, link) == ask(memory, tmp_path / "a") == plain(tmp_path / "a") and reads == ["a"]
    link.unlink()
    link.symlink_to(tmp_path / "b")
    assert ask(memory, link) == plain(tmp_path / "b")


def test_what_was_changed_a_moment_ago_is_not_remembered(tmp_path, reads):
    path, memory = tmp_path / "weights", tmp_path / "hashes.json"
    path.write_text("a")
    assert ask(memory, path) == ask(memory, path) == plain(path) and len(reads) == 2
    assert not memory.exists()


def test_what_changes_while_it_is_read_is_not_remembered(tmp_path, settled, monkeypatch):
    path, memory = tmp_path / "weights", tmp_path / "hashes.json"
    path.write_text("a")
    sha256 = file_hashes.sha256
    monkeypatch.setattr(file_hashes, "sha256", lambda name: (sha256(name), path.write_text("more"))[0])
    ask(memory, path)
    assert not memory.exists()


BROKEN = ["", "{", "[]", "null", '{"PATH": null}', '{"PATH": [1, 2]}', '{"PATH": [0, 0, 0, 0, 0, 7]}', "\udcff"]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_memory_is_as_good_as_none(tmp_path, settled, text):
    path, memory = tmp_path / "weights", tmp_path / "hashes.json"
    path.write_text("a")
    memory.write_bytes(text.replace("PATH", str(path)).encode("utf-8", "surrogateescape"))
    assert ask(memory, path) == plain(path)
    assert list(json.loads(memory.read_text())) == [str(path)]


def test_two_writers_keep_what_both_have_found(tmp_path, settled, reads):
    memory = tmp_path / "hashes.json"
    for name in "ab":
        (tmp_path / name).write_text(name)
    with FileHashes(memory) as first, FileHashes(memory) as second:
        first.sha256(tmp_path / "a")
        second.sha256(tmp_path / "b")
    reads.clear()
    assert [ask(memory, tmp_path / name) for name in "ab"] == [plain(tmp_path / name) for name in "ab"]
    assert not reads


def test_a_memory_that_cannot_be_written_stops_nothing(tmp_path, settled):
    (tmp_path / "weights").write_text("a")
    (tmp_path / "taken").write_text("a file")
    assert ask(tmp_path / "taken/hashes.json", tmp_path / "weights") == plain(tmp_path / "weights")
