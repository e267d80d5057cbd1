"""The subcommand `follow`: a recent sweep many times a second, on one connection, until it is stopped."""

from __future__ import annotations

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
from mailglass_reconcile.cli.output import print_result
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
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.store.database import OpenConnection
from mailglass_reconcile.sweep import recent
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult, format_remaining

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Wait this long after a fault before the next attempt."""
DISPATCH_SECONDS = 30.0
"""Run handlers at least this often, even if nothing was linked."""
FINISH_SECONDS = 10.0
"""Wait this long for running handlers at the end."""

EXAMPLES = """\b
Examples:
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
@click.option("--tenant", metavar="ID", help="Sweep this tenant's events only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per sweep that did something.")
def follow(interval: float, tenant: str | None, as_json: bool) -> None:
    """Link events as soon as their delivery exists, until SIGTERM or Ctrl-C.

    Survives restarts of Postgres and Redis. Keep the sweep every five minutes as well: it links what this missed.
    """
    sys.exit(Follower(interval, tenant, as_json).run())


class Follower:
    """Sweeps at each tick on one connection, and retries after a fault."""

    def __init__(self, interval: float, tenant_id: str | None, as_json: bool) -> None:
        self._interval = interval
        self._tenant_id = tenant_id
        self._as_json = as_json
        self._database = runtime.database()
        self._handlers = _Handlers()
        self._throttle = LogThrottle()
        self._sweep: Sweep | None = None
        self._is_first_sweep = True
        self._failing = False
        """True if the last sweep failed."""
        self._database_lost = self._redis_lost = False
        """True from the log line that the database, or Redis, is lost until the line that it is back."""
        self._stop_signal: int | None = None

    def run(self) -> int:
        """Follow until a signal comes, and return the exit code: 0 after SIGTERM, 130 after Ctrl-C."""
        for handler in logging.getLogger().handlers:
            handler.addFilter(self._is_new)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        require_schema()
        registration.register_before_sweep(self._database)
        try:
            while self._stop_signal is None:
                try:
                    self._sweep_on_one_connection()
                except MailglassReconcileError as error:
                    if self._is_first_sweep or isinstance(error, ConfigurationError | SchemaOutdatedError):
                        raise
                    self._log_loss(error)
                self._wait(RETRY_SECONDS)
        finally:
            self._handlers.stop()
        return INTERRUPTED if self._stop_signal == signal.SIGINT else 0

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Finish the running batch, then stop; a second Ctrl-C does not wait for it."""
        self._stop_signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._sweep is not None:
            self._sweep.stop()

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._stop_signal is None and (remaining_seconds := until - time.monotonic()) > 0:
            time.sleep(min(remaining_seconds, 0.1))  # a signal does not end a sleep

    def _sweep_on_one_connection(self) -> None:
        """Sweep at each tick, until a signal comes or a sweep has failed."""
        with self._database.connect() as connected:
            while self._stop_signal is None:
                began = time.monotonic()
                result = self._sweep_once(connected)
                self._report(result)
                if result.status == "failed":
                    return
                self._wait(began + self._interval - time.monotonic())

    def _sweep_once(self, connected: OpenConnection) -> SweepResult:
        self._sweep = recent.prepare(self._interval, self._tenant_id, origin="follow")
        result = self._sweep.run(nullcontext(connected))
        self._is_first_sweep = False
        return result

    def _report(self, result: SweepResult) -> None:
        """Print the result of a sweep, wake the handlers, and log recoveries."""
        self._handlers.wake(result.linked)
        if result.linked or result.failed or (result.status != "ok" and self._stop_signal is None):
            print_result(result.as_dict(), _format_result(result), as_json=self._as_json)
        if self._failing and result.status != "failed":
            self._database_lost = False
            self._log_recovery("the database is back")
        self._failing = result.status == "failed"
        if result.publish_failed:  # the publisher has logged it
            self._redis_lost = True
        elif result.published and self._redis_lost:
            self._redis_lost = False
            self._log_recovery("Redis is back: broadcasts are published again")

    def _log_loss(self, error: MailglassReconcileError) -> None:
        if not self._database_lost:
            problem = "lost the database" if isinstance(error, DatabaseUnavailableError) else "cannot sweep"
            logger.warning("%s; retrying: %s", problem, error)
        self._database_lost = self._failing = True

    def _log_recovery(self, line: str) -> None:
        logger.warning(line)
        self._throttle = LogThrottle()  # the next fault is a new one

    def _is_new(self, record: logging.LogRecord) -> bool:
        """Return True if a line is this module's own, or was not logged within the last minute, as at each attempt."""
        return record.name == __name__ or self._throttle.allow(record.getMessage())


class _Handlers:
    """A thread that runs this process's handlers for linked events, and retries failed jobs at intervals."""

    def __init__(self) -> None:
        self._wake_up = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def wake(self, linked: int) -> None:
        """Run the handlers in their thread if something was *linked*; this does not wait for them."""
        if not registry.types_with_handlers():
            return
        if linked:
            self._wake_up.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="mailglass handlers")
            self._thread.start()

    def stop(self) -> None:
        """Wait some seconds for running handlers; unfinished jobs are retried later."""
        self._ended = True
        self._wake_up.set()
        if self._thread is not None:
            self._thread.join(FINISH_SECONDS)

    def _run(self) -> None:
        while not self._ended:
            try:
                while not self._ended and dispatcher.dispatch_within(FINISH_SECONDS / 2, "follow").handled:
                    pass
            except Exception as error:  # if this thread ended, no handler would run any more
                cause = str(error) if isinstance(error, MailglassReconcileError) else type(error).__name__
                logger.warning("handlers did not run, and will at the next dispatch: %s", cause)
            self._wake_up.wait(DISPATCH_SECONDS)
            self._wake_up.clear()


def _format_result(result: SweepResult) -> str:
    orphans = pluralize(result.scanned, "recent event")
    line = f"linked {result.linked:,} of {orphans} in {format_duration_ms(result.duration_ms)}"
    line += f"; {result.failed:,} failed" if result.failed else ""
    line += f"; {pluralize(result.publish_failed, 'broadcast')} not sent" if result.publish_failed else ""
    return line + ("" if result.status == "ok" else f"; {result.status}, {format_remaining(result.remaining)}")
