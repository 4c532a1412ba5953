"""One program that a server of preloaded.py runs in a fork: `preloaded_client.py FOLDER` and the arguments of `python`.

FOLDER lies in the server's, and "first" is that in which each script's first start is one of the real interpreter. This
stands in the program's place: signals that it gets are the program's, and it ends as the program does.
"""

import marshal
import os
import signal
import socket
import sys

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def open_files():
    """Numbers of the file descriptors that a program inherits."""
    numbers = []
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            if os.get_inheritable(number):
                numbers.append(number)
        except OSError:  # that of the listing
            pass
    return numbers


def is_first(folder, script):
    """Whether nothing has started the script by this folder before."""
    try:
        os.close(os.open(f"{folder}/{os.path.basename(script)}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def main(folder, arguments):
    is_script = arguments[0].endswith(".py")
    if not (is_script or arguments[0] == "-m") or (folder.endswith("/first") and is_first(folder, arguments[0])):
        os.execv(sys.executable, [sys.executable, *arguments])
    numbers = open_files()
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    umask = os.umask(0)
    request = (arguments, os.getcwd(), dict(os.environb), umask, numbers, [int(number) for number in ignored])
    content = marshal.dumps(request)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(f"{os.path.dirname(folder)}/socket")
        socket.send_fds(server, [len(content).to_bytes(8, "little")], numbers)
        server.sendall(content)
        for number in set(SIGNALS) - set(ignored):
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        status = server.recv(100)
    if not status:
        sys.exit("preloaded.py's server has ended")
    status = marshal.loads(status)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
