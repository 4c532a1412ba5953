"""Run functions in forks of a process that has imported the libraries, so that each has its own memory and state.

Importing torch, diffusers and transformers takes a process longer than most of what tests ask of it.
"""

import json
import os
import sys
import traceback


def call(function, *arguments):
    """What function(*arguments) returns in a process of its own; of JSON's types.

    The caller has one thread, as a fork takes no other along.

    Raises:
        ChildProcessError: it has raised an exception, which is printed, or was killed.
    """
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            answer = json.dumps(function(*arguments)).encode()
            with os.fdopen(writer, "wb") as file:
                file.write(answer)
            code = 0
        except BaseException:  # noqa: BLE001  (whatever ends a fork, its traceback is shown here)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise ChildProcessError(f"{function.__name__}{arguments} has ended with {os.waitstatus_to_exitcode(status)}")
    return json.loads(answer)
