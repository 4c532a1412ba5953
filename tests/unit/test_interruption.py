"""Programs interrupted while they write: one sentence where possible, and no half-written file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantwatt.artifacts import manifest
from quantwatt.jobs.command import PROGRESS_FD

SCRIPTS = Path(manifest.__file__).parents[2]
WRITING = """
import atexit, os, pathlib, sys, time
from quantwatt.artifacts import manifest
from quantwatt.jobs import command

unlink = pathlib.Path.unlink
def disturbed(path, missing_ok):  # another signal while what is half-written is removed, and one at the very end
    os.kill(os.getpid(), int(os.environ.get("ANOTHER_SIGNAL", "0")))
    unlink(path, missing_ok)

def main():
    pathlib.Path.unlink = disturbed
    atexit.register(os.kill, os.getpid(), int(os.environ.get("ANOTHER_SIGNAL", "0")))
    with manifest.atomic_path(sys.argv[1]) as temporary:
        temporary.write_text("half")
        print(os.getpid(), flush=True)
        time.sleep(600)

command.run(main)
"""
STARTING = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


@pytest.fixture
def writing(tmp_path, monkeypatch):
    """Start a program that is in the midst of writing a file; (process, its own id, the file)."""
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS))
    monkeypatch.delenv(PROGRESS_FD, raising=False)
    path, started = tmp_path / "results/manifest.json", []

    def start(*before):
        arguments = [sys.executable, "-c", *before, WRITING, path]
        started.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        writer = int(started[0].stdout.readline())
        assert [file.read_text() for file in path.parent.iterdir()] == ["half"] and not path.exists()
        return started[0], writer, path

    yield start
    started[0].kill()
    started[0].communicate()


@pytest.mark.parametrize("another", [0, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_is_told_to_end_removes_what_is_half_written(writing, monkeypatch, blow, another):
    monkeypatch.setenv("ANOTHER_SIGNAL", str(int(another)))
    process, _, path = writing()
    process.send_signal(blow)
    assert process.communicate(timeout=60) == ("", "interrupted: run again to go on.\n")
    assert process.returncode == 1 and not list(path.parent.iterdir())


SWALLOWING = """
import os, signal
from quantwatt.jobs import command
from quantwatt.jobs.progress import progress

def main():
    for i in progress(range(3)):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except:
            print("swallowed", i)
    print("done")

command.run(main)
"""


def test_a_signal_that_a_library_swallows_ends_the_program_at_the_next_step():
    settings = {"env": os.environ | {"PYTHONPATH": str(SCRIPTS)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", SWALLOWING], **settings)
    assert (done.returncode, done.stdout) == (1, "swallowed 0\n")
    assert done.stderr.endswith("interrupted: run again to go on.\n")


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_has_done_its_work_ends_well(blow):
    program = "import atexit, os; from quantwatt.jobs import command"
    program += f"; atexit.register(os.kill, os.getpid(), {int(blow)}); command.run(lambda: 0)"
    settings = {"env": os.environ | {"PYTHONPATH": str(SCRIPTS)}, "capture_output": True}
    done = subprocess.run([sys.executable, "-c", program], **settings)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_a_killed_program_has_left_goes_when_the_file_is_written_again(writing):
    process, _, path = writing()
    process.kill()
    process.wait()
    beside = [path.with_name(f".{name}.1.part.json") for name in ("manifest.3.5", "other")]
    for other in beside:
        other.write_text("another file's, which a job may be writing at this moment")
    manifest.write_json(path, {"whole": True})
    assert sorted(path.parent.iterdir()) == [*beside, path] and manifest.read_json(path) == {"whole": True}


def ends(process_id, seconds):
    """Whether a process ends, or is a zombie that nobody waits for, within some seconds."""
    for _ in range(int(seconds * 20)):
        try:
            if Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells of a parent's death")
@pytest.mark.parametrize("of_a_rule", [True, False])
def test_a_rules_job_ends_with_the_snakemake_that_started_it(writing, monkeypatch, of_a_rule):
    if of_a_rule:
        monkeypatch.setenv(PROGRESS_FD, "3")
    process, writer, path = writing(STARTING)
    process.kill()
    if of_a_rule:
        assert ends(writer, 60) and not list(path.parent.iterdir())
    else:  # one that was started by hand may be left running
        assert not ends(writer, 1)
        os.kill(writer, signal.SIGTERM)
        assert ends(writer, 60)
