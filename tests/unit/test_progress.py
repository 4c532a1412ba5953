"""Progress bars go to the terminal's stream that a rule passes on, all other output to the log."""

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

from quantwatt.jobs.progress import PROGRESS_FD

CODE = """
from quantwatt.jobs.progress import progress
for _ in progress(range(3), description="counting"): pass
print("done")
"""


def run(**environment):
    """(what came through the handed-on stream, stdout, stderr) of a loop of three."""
    reading, writing = os.pipe()
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parents[2] / "workflow_scripts",
        env={**os.environ, **{key: str(writing) for key in environment}},
        pass_fds=[writing],
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(writing)
    with os.fdopen(reading) as stream:
        return stream.read(), done.stdout, done.stderr


def test_the_bar_is_drawn_on_the_stream_that_is_handed_on():
    shown, out, errors = run(**{PROGRESS_FD: True})
    assert "counting" in shown and "3/3" in shown
    assert out == "done\n" and "counting" not in errors


def test_a_script_run_by_hand_draws_on_its_own_stderr():
    shown, _, errors = run()
    assert shown == "" and "counting" in errors and "3/3" in errors


TWO = """
import sys
from quantwatt.jobs.progress import progress
bar = progress(total=3, description=sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:  # what the test says: an update that is shown at once
    bar.mininterval = 0
    bar.update()
    bar.refresh()
    print("updated", flush=True)
bar.close()
"""


def start(name, descriptor):
    return subprocess.Popen(
        [sys.executable, "-c", TWO, name],
        cwd=Path(__file__).parents[2] / "workflow_scripts",
        env={**os.environ, PROGRESS_FD: str(descriptor)},
        pass_fds=[descriptor],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def in_turns(descriptor):
    """Two jobs, begun one after the other, which count in turns."""
    jobs = []
    for name in ("calibrating", "generating"):
        jobs.append(start(name, descriptor))
        assert jobs[-1].stdout.readline() == "ready\n"
    for _ in range(2):
        for job in jobs:
            job.stdin.write("\n")
            job.stdin.flush()
            assert job.stdout.readline() == "updated\n"
    for job in reversed(jobs):
        job.stdin.close()
        assert job.wait() == 0
        job.stdout.close()


def screen(written):
    """The lines of a terminal after this was written."""
    lines, column = [""], 0
    for part in re.findall(r"\x1b\[K|\x1b\[A|\r|\n|[^\x1b\r\n]+", written):
        if part == "\n":
            lines.append("")
            column = 0
        elif part == "\r":
            column = 0
        elif part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            assert part != "\x1b[A", "a bar that moves over lines of others"
            lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part) :]
            column += len(part)
    return lines


def test_two_jobs_share_no_line_of_a_file():
    reading, writing = os.pipe()
    in_turns(writing)
    os.close(writing)
    with os.fdopen(reading) as stream:
        lines = stream.read().splitlines()
    assert all(("calibrating" in line) != ("generating" in line) for line in lines)
    for name in ("calibrating", "generating"):
        assert any(name in line and "2/3" in line for line in lines)


def test_two_jobs_share_no_line_of_a_terminal():
    """The first draws a bar; the second's lines take its place and leave it room below."""
    reading, writing = pty.openpty()
    termios.tcsetwinsize(writing, (24, 80))
    in_turns(writing)
    written = os.read(reading, 100_000).decode().replace("\r\n", "\n")
    os.close(writing)
    os.close(reading)
    assert "calibrating" in written and "\n" in written
    lines = [line for line in screen(written) if line.strip()]
    assert sum("generating" in line for line in lines) >= 3 and any("2/3" in line for line in lines)
    assert not any("calibrating" in line and "generating" in line for line in lines)
