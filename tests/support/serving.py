"""`mailglass-reconcile serve` as a process, and our server in this one."""

import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from browsing import TOKEN
from mailglass_reconcile import server
from waiting import wait_until


@contextmanager
def serving(
    url: str,
    redis_url: str,
    *arguments: str,
    before: str | None = None,
    files: int | None = None,
    module: str = "mailglass_reconcile",
) -> Iterator[tuple]:
    """Serve a database on a free port while the block runs; yields the process and its address.

    With *before*, no token is set: the first line matches that, and its group is yielded, too. With *files*, the
    process may open so many files. *module* runs instead of the command.
    """
    others = {name: value for name, value in os.environ.items() if not name.startswith("MAILGLASS_")}
    token = {} if before else {"MAILGLASS_WEB_TOKEN": TOKEN}
    process = subprocess.Popen(
        [sys.executable, "-m", module, "serve", "--port", "0", *arguments],
        env={
            **others,
            "PYTHONPATH": str(Path(__file__).parent),
            "MAILGLASS_DATABASE_URL": url,
            "MAILGLASS_REDIS_URL": redis_url,
            **token,
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    if files:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (files, files))
    try:
        first = re.fullmatch(before, process.stderr.readline()) if before else None
        line = process.stderr.readline()
        said = re.fullmatch(r"serving on (http://\S+/); press Ctrl-C to stop\n", line)
        assert said, line + process.stderr.read()
        yield (process, said[1], first[1]) if first else (process, said[1])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@contextmanager
def bounded(application) -> Iterator[str]:
    """Serve an application in this process, as the command does."""
    listener = server._listen("127.0.0.1", 0)
    config = uvicorn.Config(
        application,
        backlog=server.ACCEPTED_AT_ONCE,
        log_config=None,
        lifespan="off",
        loop="asyncio",
        http=server.BoundedProtocol,
        h11_max_incomplete_event_size=server.MAX_HEAD_BYTES,
    )
    running = server._Server(config)  # without its queue, a full one makes clients wait for seconds
    thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: running.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        running.should_exit = True
        thread.join(20)
