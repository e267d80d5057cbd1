"""The program that `processes` starts to fork from: it imports modules, and forks a process for each connection.

`python -c` runs it, and a forked process runs to the end of this program too. So it ends as any Python process does:
with flushed streams and the exit code of its `SystemExit`, or with a traceback. Its parent, which is forked as well,
sends the process id and the exit code to the client, forwards the client's signals to it, and kills it if the client
closes the connection.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from contextlib import suppress


def wait_for(listener: socket.socket) -> list[str]:
    """Serve until standard input is closed; in each forked process, return the arguments of Python."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        text, files, _, _ = socket.recv_fds(connection, 1_000_000, 3)
        if text:
            request = json.loads(text)
            import_for(request["arguments"])
            if not os.fork():
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return _become(connection, request, files)
        connection.close()
        for file in files:
            os.close(file)
    os._exit(0)


def import_for(arguments: list[str]) -> None:
    """Import the modules without words, and those of which an argument contains a word: `WORD|WORD=MODULE`."""
    for entry in [*MODULES]:
        words, _, name = entry.rpartition("=")
        if any(word in argument for word in words.split("|") for argument in arguments):
            importlib.import_module(name)
            MODULES.remove(entry)
    gc.freeze()


def _become(connection: socket.socket, request: dict, files: list[int]) -> list[str]:
    """Fork again: the child returns its arguments."""
    child = os.fork()
    if child:
        for file in files:
            os.close(file)
        _attend(connection, child)
    connection.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets background processes ignore it
    signal.pthread_sigmask(signal.SIG_SETMASK, request.get("blocked", ()))
    if request.get("session"):
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=bool(os.getenv("PYTHONUNBUFFERED")))
    time.tzset()
    first, *remaining = arguments = request["arguments"]
    if first == "-P":
        folders, arguments = [], remaining
    elif first in ("-c", "-m"):
        folders = ["" if first == "-c" else request["directory"]]
    else:
        folders = [os.path.dirname(os.path.abspath(first))]  # noqa: PTH100, PTH120
    sys.path[:] = [*folders, *map(os.path.abspath, filter(None, os.getenv("PYTHONPATH", "").split(os.pathsep))), *PATH]
    if os.getenv("PYTHONPATH"):
        sys.modules.pop("sitecustomize", None)
        with suppress(ImportError):
            importlib.import_module("sitecustomize")
    return arguments


def _attend(connection: socket.socket, child: int) -> None:
    """Act as a process's parent for the client: forward signals, and send the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(f"{child}".encode())
    end = os.pidfd_open(child)
    while end not in select.select([connection, end], [], [])[0]:
        number = b""
        with suppress(ConnectionError):  # a client that was killed
            number = connection.recv(8)
        os.kill(child, int(number or signal.SIGKILL))
    _, status = os.waitpid(child, 0)
    with suppress(OSError):
        connection.send(f"{os.waitstatus_to_exitcode(status)}".encode())
    os._exit(0)


def run(first: str, *arguments: str) -> None:
    """Run a module, code or a script, as Python would."""
    if first == "-m":
        module, *remaining = arguments
        sys.argv[:] = [first, *remaining]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, *remaining = arguments
        sys.argv[:] = [first, *remaining]
        exec(code, {"__name__": "__main__"})  # noqa: S102 - as `-c` does
    else:
        sys.argv[:] = [first, *arguments]
        runpy.run_path(first, run_name="__main__")


FILE, *MODULES = sys.argv[1:]
PATH = sys.path[1:]
import_for([""])
run(*wait_for(socket.socket(fileno=int(FILE))))
