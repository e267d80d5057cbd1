"""The program that `processes` forks from: it has imported modules, and forks an interpreter for each request.

`python -c` runs it, and a forked process runs to the end of this program too. So it ends as any Python does: with the
streams flushed and the exit code of its `SystemExit`, or with a traceback.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time


def wait_for(requests: socket.socket) -> list[str]:
    """Serve until the other end is closed; in each process that is forked, return the arguments of its Python."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        text, files, _, _ = socket.recv_fds(requests, 1_000_000, 4)
        if not text:
            os._exit(0)
        if not os.fork():
            requests.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _become(json.loads(text), *files)
        for file in files:
            os.close(file)


def _become(request: dict, input_: int, output: int, errors: int, ended: int) -> list[str]:
    """Fork again: the child returns its arguments; its parent writes the child's id and exit code to *ended*."""
    child = os.fork()
    if child:
        for file in (input_, output, errors):
            os.close(file)
        os.write(ended, f"{child} ".encode())
        _, status = os.waitpid(child, 0)
        os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    os.close(ended)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets background processes ignore it
    if request["session"]:
        os.setsid()
    for number, file in enumerate((input_, output, errors)):
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    first, *others = request["arguments"]
    here = "" if first == "-c" else request["directory"]
    sys.path[:] = [here, *map(os.path.abspath, filter(None, os.getenv("PYTHONPATH", "").split(os.pathsep))), *PATH]
    return [first, *others]


def run(option: str, code: str, *arguments: str) -> None:
    """Run a module or code, as `python -m` or `python -c` would."""
    sys.argv[:] = [option, *arguments]
    if option == "-m":
        runpy.run_module(code, run_name="__main__", alter_sys=True)
    else:
        exec(code, {"__name__": "__main__"})  # noqa: S102 - as `-c` does


FILE, *MODULES = sys.argv[1:]
PATH = sys.path[1:]
for name in MODULES:
    importlib.import_module(name)
gc.freeze()
run(*wait_for(socket.socket(fileno=int(FILE))))
