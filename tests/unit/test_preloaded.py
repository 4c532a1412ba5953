"""The `python` that workflow tests use: its forks behave like programs of the real interpreter."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import preloaded
import psutil
import pytest

TELL = """
import json, os, sys
umask = os.umask(0)
print(json.dumps({"argv": sys.argv, "cwd": os.getcwd(), "environment": dict(os.environ), "umask": umask,
                  "path": sys.path[0], "read": sys.stdin.read(), "name": __name__, "interpreter": sys.executable,
                  "quantwatt": [name for name in sys.modules if name.split(".")[0] == "quantwatt"],
                  "tarfile": "tarfile" in sys.modules}))
os.write(int(sys.argv[1]), b"through a file descriptor")
sys.exit("an ending")
"""
WAIT = "import sys, time\nprint('started', flush=True)\ntime.sleep(60)\n"


@pytest.fixture(scope="module")
def own():
    """One that has imported a module that no other program has, and one of the project's."""
    return preloaded.Preloaded(["tarfile", "quantwatt.jobs.library_messages"])


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "scripts/script.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_fork_has_what_it_was_started_with_and_ends_as_it_does(own, script, tmp_path):
    reader, writer = os.pipe()
    path = script(TELL)
    done = subprocess.run(
        [own.python, path, str(writer), "an argument"], cwd=tmp_path, env={"ONE": "two"}, umask=0o27, input="in",
        text=True, capture_output=True, pass_fds=[writer],
    )  # fmt: skip
    os.close(writer)
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "an ending\n")
    assert told["argv"] == [str(path), str(writer), "an argument"] and told["cwd"] == str(tmp_path)
    assert told["environment"]["ONE"] == "two" and not {"HOME", "HF_HUB_OFFLINE"} & told["environment"].keys()
    assert told["umask"] == 0o27 and told["read"] == "in" and told["name"] == "__main__"
    assert told["path"] == str(path.parent) and told["interpreter"] == str(own.python)
    assert told["tarfile"] and not told["quantwatt"]
    with os.fdopen(reader) as file:
        assert file.read() == "through a file descriptor"


def test_a_module_is_run_from_the_folder_and_a_mistake_is_a_traceback(own, tmp_path):
    (tmp_path / "own_module.py").write_text("print(__name__)\n1 / 0\n")
    done = subprocess.run([own.python, "-m", "own_module"], cwd=tmp_path, text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (1, "__main__\n") and "ZeroDivisionError" in done.stderr


def test_other_command_lines_and_first_starts_are_the_real_interpreters(own, script):
    code = "import sys; print('tarfile' in sys.modules, sys.executable)"
    command = [own.python, "-c", code]
    assert subprocess.run(command, text=True, capture_output=True).stdout == f"False {sys.executable}\n"
    path = script(code)
    outputs = [subprocess.run([own.first_real, path], text=True, capture_output=True).stdout for _ in range(3)]
    assert outputs == [f"False {sys.executable}\n", *[f"True {own.python}\n"] * 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_both_the_program_and_what_stands_for_it(own, script, number):
    running = {process.pid for process in psutil.Process(own.server.pid).children()}
    with subprocess.Popen([own.python, script(WAIT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"started\n"
        [fork] = [one for one in psutil.Process(own.server.pid).children() if one.pid not in running]
        process.send_signal(number)
        process.wait(60)
    assert process.returncode == -number
    fork.wait(60)  # which the server reaps


def test_the_server_and_its_forks_end_with_the_process_that_started_it(script, tmp_path):
    program = f"""
import subprocess, sys
sys.path.insert(0, {str(preloaded.TESTS)!r})
import preloaded
own = preloaded.Preloaded(["json"])
fork = subprocess.Popen([own.python, {str(script(WAIT))!r}], stdout=subprocess.PIPE)
fork.stdout.readline()
print(own.server.pid, own.python)
"""
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    pid, python = done.stdout.split()
    psutil.wait_procs([psutil.Process(int(pid))] if psutil.pid_exists(int(pid)) else [], timeout=60)
    assert not psutil.pid_exists(int(pid)) and not Path(python).exists()
