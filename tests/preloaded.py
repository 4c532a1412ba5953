"""A `python` whose libraries are imported already: what it runs is a fork of a process that waits with them.

Importing torch, diffusers and transformers takes a job longer than its work on a tiny model. `Preloaded` puts a
`python` into a folder that answers `python SCRIPT ...` and `python -m MODULE ...` by asking its server for a fork
(preloaded_client.py), which takes over arguments, folder, environment, umask and open files, and gives signals and the
exit code the way of a program of its own. No module of this project is there before the fork: each runs those of the
copy of the project that it was started in. Any other command line goes to the real interpreter.

What is shared is the start of the interpreter alone, so a test of that, or of processes and how they die, takes the
real one.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import logging
import marshal
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

TESTS = Path(__file__).parent
SCRIPTS = TESTS.parent / "workflow_scripts"
CLIENT = TESTS / "preloaded_client.py"
MAX_FILES = 250  # of one message: the system's limit is 253

# What `import snakemake.cli` leaves to the reading of a workflow.
SNAKEMAKE = """snakemake.cli snakemake.profiles snakemake.report.html_reporter snakemake.storage jsonschema jinja2 yte
docutils.core docutils.parsers.rst.directives.images smart_open PIL.Image dpath difflib packaging.version
requests""".split()
# What jobs import: classes of diffusers and transformers by name, as their modules are imported when one is asked for.
JOBS = """torch quantwatt.jobs.torchvision_ops torchvision torch._dynamo scipy.special scipy.stats pandas
matplotlib.figure matplotlib.backends.backend_agg skimage.metrics jinja2 greenlet safetensors.torch PIL.Image
diffusers.StableDiffusion3Pipeline diffusers.StableDiffusionXLPipeline diffusers.ConsistencyModelPipeline
transformers.CLIPTextModelWithProjection transformers.AutoModelForCausalLM transformers.GPT2LMHeadModel
transformers.DistilBertForSequenceClassification transformers.PreTrainedTokenizerFast
open_clip cleanfid.fid bitsandbytes torchao.quantization optimum.quanto""".split()


class Preloaded:
    """A folder whose `python` forks from a server, which ends with the process that has made this, and its forks too.

    Attributes:
        python: path of the program.
        first_real: path of another, whose first start of each script is one of the real interpreter.
    """

    def __init__(self, modules):
        """Start the server, which imports `modules`; what is asked of it before it has, waits."""
        folder = Path(tempfile.mkdtemp(prefix="preloaded-"))  # short, as a socket's path must be, and the user's alone
        self.python, self.first_real = folder / "all/python", folder / "first/python"
        for program in (self.python, self.first_real):
            program.parent.mkdir()
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{CLIENT}" "{program.parent}" "$@"\n')
            program.chmod(0o755)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "socket"))
        listener.listen(100)
        # One thread, as a fork takes one along; no hub, whatever a script says later: it is read at import.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        descriptor = listener.fileno()
        self.server = subprocess.Popen(
            [sys.executable, __file__, str(descriptor), str(folder), *modules], env=environment,
            stdin=subprocess.PIPE, pass_fds=[descriptor], start_new_session=True,
        )  # fmt: skip
        listener.close()


@functools.cache
def snakemake():
    """Snakemake's, for all tests of this process."""
    return Preloaded(SNAKEMAKE)


@functools.cache
def jobs():
    """That of the scripts that rules run, likewise."""
    return Preloaded(JOBS)


def serve(listener, folder):
    """Answer requests; returns a fork's arguments in each of them, and in the server never."""
    sockets, programs = selectors.DefaultSelector(), {}  # {connection: (pid, file descriptor of the process)}
    sockets.register(listener, selectors.EVENT_READ)
    sockets.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in sockets.select():
            if key.data and key.data not in programs:  # it has just ended
                continue
            if key.fileobj is sys.stdin:  # closed, as whoever started this has ended
                for _, process in programs.values():
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                shutil.rmtree(folder)
                os._exit(0)
            elif key.fileobj is listener:
                client, _ = listener.accept()
                request, files = received(client)
                pid = os.fork() if request else None
                if pid == 0:
                    sockets.close()
                    for file in (listener, client, *programs):
                        file.detach()  # lest one, when it is forgotten, close what then has its number
                    return become(request, files)
                for file in files:
                    os.close(file)
                if request:
                    programs[client] = pid, os.pidfd_open(pid)
                    sockets.register(client, selectors.EVENT_READ, client)
                    sockets.register(programs[client][1], selectors.EVENT_READ, client)
            elif key.fileobj is key.data:  # a signal; without one, the client was killed, and its program shall be
                number = b""
                with contextlib.suppress(ConnectionResetError):
                    number = key.data.recv(1)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(programs[key.data][1], number[0] if number else signal.SIGKILL)
                if not number:
                    sockets.unregister(key.data)
            else:
                pid, process = programs[key.data]
                _, status = os.waitpid(pid, 0)
                with contextlib.suppress(OSError):
                    key.data.sendall(marshal.dumps(status))
                sockets.unregister(process)
                os.close(process)
                with contextlib.suppress(KeyError):
                    sockets.unregister(key.data)
                key.data.close()
                del programs[key.data]


def received(client):
    """(request, file descriptors) of one connection; (None, []) where it ends before it is whole."""
    content, files, _, _ = socket.recv_fds(client, 8, MAX_FILES)
    length = int.from_bytes(content, "little")
    parts = []
    while length > 0 and (part := client.recv(min(length, 1 << 20))):
        parts.append(part)
        length -= len(part)
    return (marshal.loads(b"".join(parts)), files) if content and length == 0 else (None, files)


def become(request, files):
    """Take over what a program is started with; returns its arguments."""
    arguments, folder, environment, umask, numbers, ignored = request
    above = max(numbers, default=0) + MAX_FILES
    kept = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]
    os.closerange(0, above)  # the server's sockets among them
    for file, number in zip(kept, numbers, strict=True):
        os.dup2(file, number)
        os.close(file)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    os.chdir(folder)
    os.umask(umask)
    os.environb.clear()
    os.environb.update(environment)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    return arguments


def run(arguments, python):
    """What `python ARGUMENTS` does; its subprocesses are forks, too."""
    sys.executable = python
    sys.path[0:1] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if arguments[0] == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        script = os.path.realpath(arguments[0])
        sys.path[0] = os.path.dirname(script)
        sys.argv = arguments
        runpy.run_path(script, run_name="__main__")


def end(code):
    """End as sys.exit(code) does, but for the taking down of every module, which would copy most of what is shared."""
    threading._shutdown()
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(1 if isinstance(code, str) else code or 0)


def preload(names):
    """Import modules, and classes of modules, of which those that are not there are left to whoever needs them."""
    sys.path.insert(0, str(SCRIPTS))
    for name in names:
        module, _, last = name.rpartition(".")
        with contextlib.suppress(ImportError):
            if last[0].isupper():
                getattr(importlib.import_module(module), last)
            else:
                importlib.import_module(name)
    sys.path.remove(str(SCRIPTS))
    own = [sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "quantwatt"]
    gc.collect()
    gc.freeze()  # else a fork's collections copy what it shares
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"importing {' '.join(names)} has started {threads - 1} threads, which no fork would have"
    return own  # whose operators last as long as they do


if __name__ == "__main__":
    listener, folder = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    logging.disable()  # of what is said at import
    own = preload(sys.argv[3:])
    logging.disable(logging.NOTSET)
    arguments, code = serve(listener, folder), 0
    try:
        run(arguments, f"{folder}/all/python")
    except SystemExit as ending:
        code = ending.code
    except Exception:
        traceback.print_exc()
        code = 1
    end(code)
