"""Progress goes to the terminal's stream that a rule hands on, everything else to the log."""

import os
import subprocess
import sys
from pathlib import Path

from quantwatt.progress import PROGRESS_FD

CODE = (
    "from quantwatt.progress import progress\nfor _ in progress(range(3), description='counting'): pass\nprint('done')"
)


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
