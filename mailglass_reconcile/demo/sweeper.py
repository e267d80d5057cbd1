"""What sweeps in the demo: a Celery worker with beat, whose results are read as Celery itself publishes them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import redis
from pydantic import SecretStr

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.schedule import RECENT_TASK
from mailglass_reconcile.settings import ENV_PREFIX, Settings
from mailglass_reconcile.sweep.result import SweepResult

# A schedule in memory: in a file, Python 3.13 keeps it in SQLite, which now and then refuses beat ("locking protocol").
COMMAND = "celery -A mailglass_reconcile.demo.app worker -B -c 1 --scheduler celery.beat.Scheduler"
RECENT_SECONDS = 0.25
RESULT_CHANNELS = "celery-task-meta-*"
STOP_SECONDS = 10.0


class Swept(NamedTuple):
    """A sweep that has ended: the id of its Celery task, its result, and whether it was a recent or a full one."""

    task_id: str
    result: SweepResult
    way: str = "recent"


class Sweeper(Protocol):
    """Sweeps by itself, several times a second."""

    def poll(self) -> Iterator[Swept]:
        """Yield the sweeps that have ended since the last call."""


class Worker:
    """A running worker, and the subscription to its results."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, results: redis.client.PubSub) -> None:
        self._process = process
        self._log = log
        self._results = results

    def poll(self) -> Iterator[Swept]:
        """Yield the sweeps that have ended since the last call.

        Raises:
            MailglassReconcileError: The worker has ended, which it does not do by itself.
        """
        while (message := self._results.get_message(timeout=0)) is not None:
            if message["type"] == "pmessage":
                yield from _sweeps(json.loads(message["data"]))
        if self._process.poll() is not None:
            last = self._log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise MailglassReconcileError(f"the demo's Celery worker has ended: {last or 'it said nothing'}")


@contextmanager
def worker(settings: Settings) -> Iterator[Worker]:
    """Run a Celery worker with beat on *settings* while the block runs; nothing of it stays.

    It leads a session of its own, so a terminal's Ctrl-C reaches the demo alone, which then stops it.
    """
    directory = Path(tempfile.mkdtemp(prefix="mailglass-worker-"))
    try:
        with redis.Redis.from_url(settings.redis_url.get_secret_value()) as client, client.pubsub() as results:
            results.psubscribe(RESULT_CHANNELS)
            process = _start(settings, directory)
            try:
                yield Worker(process, directory / "log", results)
            finally:
                _stop(process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start(settings: Settings, directory: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", *COMMAND.split()]
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - nothing in the command comes from outside
            [*command, "--without-gossip", "--without-mingle", "--loglevel", "WARNING"],
            cwd=directory,
            env=_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the worker to stop, and end whatever is left of its process group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment with *settings*, and without variables that Celery would prefer to them."""
    others = {name: value for name, value in os.environ.items() if not name.startswith((ENV_PREFIX, "CELERY_"))}
    given = settings.model_dump(exclude_none=True)
    return others | {ENV_PREFIX + name.upper(): _plain(value) for name, value in given.items()}


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _sweeps(told: dict[str, Any]) -> Iterator[Swept]:
    """Yield the sweep that a task's result describes; none if it was a prune, or a duplicate."""
    result, way = told["result"], "recent" if told.get("name") == RECENT_TASK else "full"
    if told["status"] == "FAILURE":
        yield Swept(told["task_id"], SweepResult(status="failed"), way)
    elif told["status"] == "SUCCESS" and "scanned" in result:
        yield Swept(told["task_id"], SweepResult(**result), way)
