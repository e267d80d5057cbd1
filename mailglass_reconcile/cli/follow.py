"""The subcommand `follow`: a recent sweep many times a second, on one connection, until it is stopped."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from contextlib import nullcontext
from types import FrameType

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli import INTERRUPTED
from mailglass_reconcile.cli.startup import require_schema
from mailglass_reconcile.errors import (
    ConfigurationError,
    DatabaseUnavailableError,
    MailglassReconcileError,
    SchemaOutdatedError,
)
from mailglass_reconcile.handlers import dispatcher, registration
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.humanize import format_duration_ms, pluralize
from mailglass_reconcile.store.database import Connected
from mailglass_reconcile.sweep import recent
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult, format_remaining

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
"""After a fault, the next try comes so much later."""
REPEAT_SECONDS = 60.0
"""A fault that lasts says the same at each try: each line is logged once in this time."""
DISPATCH_SECONDS = 30.0
"""How often handlers are looked after although nothing was linked."""
FINISH_SECONDS = 10.0
"""At the end, handlers that run have so long to finish."""

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
    help="Wait this many seconds between sweeps.",
)
@click.option("--tenant", metavar="ID", help="Sweep this tenant's orphans only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per sweep that did something.")
def follow(interval: float, tenant: str | None, as_json: bool) -> None:
    """Link orphans as soon as their delivery exists, until SIGTERM or Ctrl-C.

    Survives restarts of Postgres and Redis. Keep the sweep every five minutes as well: it links what this one missed.
    """
    sys.exit(Follower(interval, tenant, as_json).run())


class Follower:
    """Sweeps at each tick, and again and again after a fault, with one connection that is kept."""

    def __init__(self, interval: float, tenant_id: str | None, as_json: bool) -> None:
        self._interval = interval
        self._tenant_id = tenant_id
        self._as_json = as_json
        self._database = runtime.database()
        self._handlers = _Handlers()
        self._repeats = _Repeats()
        self._sweep: Sweep | None = None
        self._first = True
        self._failing = False
        """Whether the last sweep has failed."""
        self._lost = self._redis_lost = False
        """Whether the log says that the database, or Redis, is lost, and not yet that it is back."""
        self._ended_by: int | None = None

    def run(self) -> int:
        """Follow until a signal comes, and return the exit code: 0 after SIGTERM, 130 after Ctrl-C."""
        for handler in logging.getLogger().handlers:
            handler.addFilter(self._repeats.passes)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        require_schema()
        registration.register_before_sweep(self._database)
        try:
            while self._ended_by is None:
                try:
                    self._sweep_on_one_connection()
                except MailglassReconcileError as error:
                    if self._first or isinstance(error, ConfigurationError | SchemaOutdatedError):
                        raise
                    self._tell_of_loss(error)
                self._wait(PAUSE_SECONDS)
        finally:
            self._handlers.end()
        return INTERRUPTED if self._ended_by == signal.SIGINT else 0

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Let the running batch be the last one; a second Ctrl-C does not wait for it."""
        self._ended_by = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._sweep is not None:
            self._sweep.stop()

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._ended_by is None and (remaining_seconds := until - time.monotonic()) > 0:
            time.sleep(min(remaining_seconds, 0.1))  # a signal does not end a sleep

    def _sweep_on_one_connection(self) -> None:
        """Sweep at each tick, until a signal comes or a sweep has failed."""
        with self._database.connect() as connected:
            while self._ended_by is None:
                began = time.monotonic()
                result = self._swept(connected)
                self._tell(result)
                if result.status == "failed":
                    return
                self._wait(began + self._interval - time.monotonic())

    def _swept(self, connected: Connected) -> SweepResult:
        self._sweep = recent.prepare(self._interval, self._tenant_id, origin="follow")
        result = self._sweep.run(nullcontext(connected))
        self._first = False
        return result

    def _tell(self, result: SweepResult) -> None:
        """Print what a sweep did, let handlers run, and say what is back."""
        self._handlers.look_after(result.linked)
        if result.linked or result.failed or (result.status != "ok" and self._ended_by is None):
            click.echo(json.dumps(result.as_dict()) if self._as_json else _in_words(result))
        if self._failing and result.status != "failed":
            self._lost = False
            self._tell_of_return("the database is back")
        self._failing = result.status == "failed"
        if result.publish_failed:  # the publisher has said so
            self._redis_lost = True
        elif result.published and self._redis_lost:
            self._redis_lost = False
            self._tell_of_return("Redis is back: broadcasts are published again")

    def _tell_of_loss(self, error: MailglassReconcileError) -> None:
        if not self._lost:
            lost = "lost the database" if isinstance(error, DatabaseUnavailableError) else "cannot sweep"
            logger.warning("%s; retrying: %s", lost, error)
        self._lost = self._failing = True

    def _tell_of_return(self, line: str) -> None:
        logger.warning(line)
        self._repeats.forget()


class _Handlers:
    """A thread that runs this process's handlers for what is linked, and now and then what has to be tried again."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def look_after(self, linked: int) -> None:
        """Let the handlers run, if there are any and something was *linked*; this does not wait for them."""
        if not registry.handled_types():
            return
        if linked:
            self._asked.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="mailglass handlers")
            self._thread.start()

    def end(self) -> None:
        """Let the handlers that run finish, within some seconds; what they have not done then is tried again."""
        self._ended = True
        self._asked.set()
        if self._thread is not None:
            self._thread.join(FINISH_SECONDS)

    def _run(self) -> None:
        while not self._ended:
            try:
                while not self._ended and dispatcher.dispatch_within(FINISH_SECONDS / 2, "follow").handled:
                    pass
            except Exception as error:  # a thread that has ended would run no handler any more
                cause = str(error) if isinstance(error, MailglassReconcileError) else type(error).__name__
                logger.warning("handlers did not run, and will at the next dispatch: %s", cause)
            self._asked.wait(DISPATCH_SECONDS)
            self._asked.clear()


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
    orphans = pluralize(result.scanned, "recent orphan")
    words = f"linked {result.linked:,} of {orphans} in {format_duration_ms(result.duration_ms)}"
    words += f"; {result.failed:,} failed" if result.failed else ""
    words += f"; {pluralize(result.publish_failed, 'broadcast')} not sent" if result.publish_failed else ""
    return words + ("" if result.status == "ok" else f"; {result.status}, {format_remaining(result.remaining)}")
