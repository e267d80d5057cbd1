"""A program on the PATH of a test's shell, which lets a forked process run in its place; `Forker` prepends `SETUP`.

An interpreter without site-packages runs it, in a hundredth of the time that our commands take for their imports. Its
name is `for PID`, so that `Process.family` finds the forked process. If none can be forked, the program itself is run.
"""

import json
import os
import signal
import socket
import sys
from contextlib import suppress

FORWARDED = signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2
PROGRAM, PYTHON, ADDRESS, VARIABLES, PREFIXES, FOLLOWED = json.loads(SETUP)  # type: ignore[name-defined]  # noqa: F821

arguments = sys.argv[1:] if PROGRAM == PYTHON else [PROGRAM, *sys.argv[1:]]
environment = dict(os.environ)
read = {name: value for name, value in environment.items() if name.startswith(tuple(PREFIXES))}
variables = {name: value for name, value in read.items() if name not in FOLLOWED}
if variables != VARIABLES or not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-c", "-m", "-P")):
    os.execv(PROGRAM, [PROGRAM, *sys.argv[1:]])  # noqa: S606
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect(ADDRESS)
# Signals that arrive before their handlers are installed wait.
blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED))
request = {"arguments": arguments, "environment": environment, "directory": os.getcwd(), "blocked": blocked}  # noqa: PTH109
socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
pid = connection.recv(20).decode()
for number in FORWARDED:
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, lambda number, _: connection.send(b"%d" % number))
signal.pthread_sigmask(signal.SIG_SETMASK, ())
with open("/proc/self/comm", "w") as name:  # noqa: PTH123
    name.write(f"for {pid}")
code = int(connection.recv(20) or -signal.SIGKILL)
if code < 0:
    with suppress(OSError):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
