"""The ways on which an event is linked within seconds, each as the processes that an operator would start."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.machine import Machine

FOLLOW = ["-m", "mailglass_reconcile", "follow", "--interval", "0.1"]
RECENT = ["-m", "celery", "-A", "bench.performance.celery_app", "worker", "-B", "-c", "1", "--loglevel", "WARNING"]
WORKER = ["-m", "celery", "-A", "mailglass_reconcile", "worker", "-c", "2", "--loglevel", "WARNING"]


@contextmanager
def nothing(machine: Machine, url: str) -> Iterator[dict[str, int]]:
    """Start nothing: the application's own calls link."""
    yield {}


@contextmanager
def follow(machine: Machine, url: str) -> Iterator[dict[str, int]]:
    """Run `mailglass-reconcile follow --interval 0.1`, and yield its process id by name."""
    with _running(machine, url, FOLLOW) as pid:
        yield {"follow": pid}


@contextmanager
def recent(machine: Machine, url: str) -> Iterator[dict[str, int]]:
    """Run a Celery worker and its beat with `make_beat_schedule(recent=1.0)`, and yield its process id by name."""
    with (
        tempfile.TemporaryDirectory(prefix="mailglass-beat-") as directory,
        _running(machine, url, [*RECENT, "-s", f"{directory}/schedule"]) as pid,
    ):
        yield {"worker and beat": pid}


@contextmanager
def worker(machine: Machine, url: str) -> Iterator[int]:
    """Run a Celery worker of two processes without a beat, and yield its process id."""
    with _running(machine, url, WORKER) as pid:
        yield pid


@contextmanager
def _running(machine: Machine, url: str, arguments: list[str]) -> Iterator[int]:
    """Run a Python program while the block runs.

    Raises:
        SystemExit: It ended before that.
    """
    directory = Path(tempfile.mkdtemp(prefix="mailglass-bench-"))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=machine.environment(url), stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        ended = process.poll() is not None
        process.terminate()
        process.wait(20)
        last = (directory / "log").read_text(errors="replace").strip().rpartition("\n")[2]
        shutil.rmtree(directory)
        if ended:
            raise SystemExit(f"python {' '.join(arguments)} ended by itself: {last}")
