"""The subcommand `follow`: a recent sweep many times a second, on one connection, until somebody ends it."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from types import FrameType

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli import INTERRUPTED, OWN_PROGRAM, dispatch
from mailglass_reconcile.cli.opening import look_now
from mailglass_reconcile.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    MailglassReconcileError,
    SchemaOutdatedError,
)
from mailglass_reconcile.pubsub import Publisher
from mailglass_reconcile.rules.humanize import counted, took
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.database import Connected
from mailglass_reconcile.sweep import recent
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult, remaining

logger = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 5.0
"""After a fault, the pauses double from the interval to this."""
REPEAT_SECONDS = 60.0
"""A fault that lasts says the same at each tick: each line is logged once in this time."""

EXAMPLES = """\b
Examples:
  mailglass-reconcile follow
  mailglass-reconcile follow --interval 1 --json
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--interval",
    type=click.FloatRange(0, recent.MAX_INTERVAL_SECONDS, min_open=True),
    default=0.1,
    show_default=True,
    metavar="SECONDS",
    help="Sweep that often.",
)
@click.option("--tenant", metavar="ID", help="Sweep this tenant's orphans only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per sweep that did something.")
@click.pass_obj
def follow(program: Sequence[str] | None, interval: float, tenant: str | None, as_json: bool) -> None:
    """Link orphans as soon as their delivery exists, until SIGTERM or Ctrl-C.

    Survives restarts of Postgres and Redis. Keep the sweep every five minutes as well: it links what this one missed.
    """
    look_now()
    sys.exit(Follower(interval, tenant, as_json, program or OWN_PROGRAM).run())


class Follower:
    """Sweeps at each tick, and again and again after a fault, with one connection that is kept."""

    def __init__(
        self, interval: float, tenant_id: str | None, as_json: bool, program: Sequence[str] = OWN_PROGRAM
    ) -> None:
        """Prepare to follow; nothing connects yet."""
        self._interval = interval
        self._tenant_id = tenant_id
        self._as_json = as_json
        self._database = runtime.database()
        self._publisher = Publisher(runtime.get_redis())
        self._connected: Connected | None = None
        self._sweep: Sweep | None = None
        self._faults = 0
        """How many ticks in a row have failed."""
        self._lost = False
        """Whether the log says that the database is lost, and not yet that it is back."""
        self._redis_lost = False
        self._dispatching = dispatch.DispatchProcess(program)
        self._first = True
        self._ended_by: int | None = None
        self._repeats = _Repeats()

    def run(self) -> int:
        """Follow until a signal comes, and return the exit code: 0 after SIGTERM, 130 after Ctrl-C.

        Raises:
            MailglassReconcileError: The first sweep was not possible, or a setting or the schema is wrong.
        """
        for handler in logging.getLogger().handlers:
            handler.addFilter(self._repeats.passes)
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        try:
            while self._ended_by is None:
                began = time.monotonic()
                self._tick()
                self._first = False
                select.select([reading], [], [], max(0.0, began + self._pause() - time.monotonic()))
        finally:
            self._close()
            self._dispatching.close()
            signal.set_wakeup_fd(before)
        return INTERRUPTED if self._ended_by == signal.SIGINT else 0

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Let the running batch be the last one; a second Ctrl-C does not wait for it."""
        self._ended_by = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._sweep is not None:
            self._sweep.stop()

    def _pause(self) -> float:
        pause: float = self._interval * 2 ** min(self._faults, 10)
        return min(pause, max(LONGEST_PAUSE_SECONDS, self._interval))

    def _tick(self) -> None:
        try:
            result = self._swept()
        except MailglassReconcileError as error:
            if self._first or isinstance(error, ConfigurationError | SchemaOutdatedError):
                raise
            if not self._lost:
                lost = "lost the database" if isinstance(error, DatabaseUnavailableError) else "cannot sweep"
                logger.warning("%s, and will try again until it works: %s", lost, error)
            self._lost = True
            self._faults += 1
            self._close()
            return
        if self._faults and result.status != "failed":
            self._tell_of_return("the database is back")
            self._lost = False
        self._faults = self._faults + 1 if result.status == "failed" else 0
        self._tell_of_redis(result)
        self._dispatching.ask(result.linked)
        if result.linked or result.failed or (result.status != "ok" and self._ended_by is None):
            click.echo(json.dumps(result.as_dict()) if self._as_json else _in_words(result))

    def _swept(self) -> SweepResult:
        if self._connected is None:
            self._connected = Connected(engines.connect(self._database.engine), self._database.settings)
        self._publisher.next_sweep()
        self._sweep = recent.prepare(self._interval, self._tenant_id, publisher=self._publisher, origin="follow")
        return self._sweep.run(nullcontext(self._connected))

    def _tell_of_redis(self, result: SweepResult) -> None:
        """Say when Redis is back; that it was lost, the publisher has said."""
        if result.publish_failed:
            self._redis_lost = True
        elif result.published and self._redis_lost:
            self._tell_of_return("Redis is back: broadcasts are published again")
            self._redis_lost = False

    def _tell_of_return(self, line: str) -> None:
        logger.warning(line)
        self._repeats.forget()

    def _close(self) -> None:
        if self._connected is not None:
            connected, self._connected = self._connected, None
            connected.connection.close()


class _Repeats:
    """Knows which lines were logged lately."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def forget(self) -> None:
        """Let every line be news again."""
        self._said = {}

    def passes(self, record: logging.LogRecord) -> bool:
        """Whether a line is this module's own, or was not logged within the last minute."""
        now, line = time.monotonic(), record.getMessage()
        self._said = {old: when for old, when in self._said.items() if now - when < REPEAT_SECONDS}
        if record.name == __name__ or line not in self._said:
            self._said[line] = now
            return True
        return False


def _in_words(result: SweepResult) -> str:
    orphans = counted(result.scanned, "recent orphan")
    words = f"linked {result.linked:,} of {orphans} in {took(result.duration_ms)}"
    words += f"; {result.failed:,} failed" if result.failed else ""
    words += f"; {counted(result.publish_failed, 'broadcast')} not sent" if result.publish_failed else ""
    return words + ("" if result.status == "ok" else f"; {result.status}, {remaining(result.remaining)}")
