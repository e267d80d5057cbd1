"""The program that `forking` starts: it has imported the command, and forks a process of its own for each request.

It is run by `python -c`, as the command is, so that what is forked ends as every Python does: with the streams flushed
and the exit code of its `SystemExit`, or with a traceback.
"""

import gc
import json
import os
import signal
import socket
import sys

import mailglass_reconcile.cli.explain
import mailglass_reconcile.cli.prune
import mailglass_reconcile.cli.status
import mailglass_reconcile.cli.sweep  # noqa: F401 - the others are imported by the process that needs them
from mailglass_reconcile.cli import main


def wait_for(requests: socket.socket) -> None:
    """Serve until the other end is closed, and return in each process that is to be the command."""
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


def _become(request: dict, given: int, output: int, errors: int, ended: int) -> None:
    """Fork once more: the child is the command, and its parent writes its id, and then its exit code, to *ended*."""
    command = os.fork()
    if command:
        for file in (given, output, errors):
            os.close(file)
        os.write(ended, f"{command} ".encode())
        _, status = os.waitpid(command, 0)
        os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    os.close(ended)
    for number, file in enumerate((given, output, errors)):
        os.dup2(file, number)
        os.close(file)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]


gc.freeze()
wait_for(socket.socket(fileno=int(sys.argv[1])))
main()
