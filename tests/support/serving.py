"""Servers of tests: `serve` and `receive` as processes, and an application in this process."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn

import processes
from browsing import TOKEN
from processes import Process
from waiting import PATIENCE, wait_until

ADDRESS = re.compile(r"(?:serving|running) on (http://[^\s/]+)")
"""What our server and uvicorn print when they accept connections."""


@contextmanager
def serve(
    environment: Mapping[str, str],
    *arguments: str,
    token: str = TOKEN,
    module: Sequence[str] = ("mailglass_reconcile", "serve"),
    forked: bool = True,
) -> Iterator[tuple[Process, str]]:
    """Run `mailglass-reconcile serve`, or another module, on a free port; yield the process and its address."""
    environment = {"MAILGLASS_WEB_TOKEN": token, **environment, "PYTHONPATH": str(Path(__file__).parent)}
    command = ["-m", *module, "--port", "0", *arguments]
    with processes.start(command, environment, until=ADDRESS, forked=forked) as process:
        yield process, process.wait_for(ADDRESS)[1]


@contextmanager
def serve_here(application) -> Iterator[str]:
    """Serve an application in this process, on a free port, and yield its address."""
    config = uvicorn.Config(application, port=0, log_config=None, lifespan="off", loop="asyncio", http="h11")
    listener = config.bind_socket()
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: running.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(PATIENCE)
