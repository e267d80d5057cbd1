"""One run of the demo, from the start of both servers and the worker to the last table."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from mailglass_reconcile import runtime
from mailglass_reconcile.demo import plot, report, verdict
from mailglass_reconcile.demo.director import Director
from mailglass_reconcile.demo.listener import Listener
from mailglass_reconcile.demo.screen import Screen
from mailglass_reconcile.demo.sweeper import COMMAND, INTERVAL_SECONDS, RECENT_SECONDS, Sweeper, worker
from mailglass_reconcile.demo.traffic import Traffic
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import database
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers

GRACE_SECONDS = 1

OPENING = f"""\
Webhooks arrive here before the deliveries that they speak of have committed, and become orphans.
Celery tasks that beat asks for link them. A recent sweep, here every {RECENT_SECONDS:g} s, links what arrived just now.
A full sweep links what was missed: here every {INTERVAL_SECONDS:g} s, so that it is soon seen, and after
{GRACE_SECONDS} s of grace; in operation every five minutes, and after 60 s.
"""


def run() -> int:
    """Play the demo on servers of its own, and return 0, or 1 where a promise was broken."""
    servers.exit_on_signals()
    screen = Screen()
    screen.console.print(OPENING)
    screen.tell("servers", "starting PostgreSQL and Valkey")
    with _installation(screen) as settings:
        outcome = _play(screen, settings)
    report.write(screen.console, outcome)
    return 0 if all(outcome.promises.values()) else 1


@contextmanager
def _installation(screen: Screen) -> Iterator[Settings]:
    """Start both servers, configure this process for them, and migrate; no variable of the environment counts."""
    with servers.postgres() as database_url, servers.redis(password=secrets.token_hex(16)) as redis_url:
        settings = Settings(
            database_url=database_url,
            database_schema="public",
            redis_url=redis_url,
            lock_url=None,
            broker_url=None,
            grace_seconds=GRACE_SECONDS,
            max_age_minutes=10_080,
            batch_size=2_000,
            sweep_seconds=30,
        )
        runtime.configure(settings=settings)
        try:
            tell = screen.tell
            runner.migrate(database.create_engine(settings), settings, lambda line: tell("migrate", line))
            yield settings
        finally:
            runtime.configure()
            screen.tell("servers", "stopping PostgreSQL and Valkey")


def _play(screen: Screen, settings: Settings) -> verdict.Verdict:
    engine = database.create_engine(settings)
    waves = plot.waves()
    with (
        Listener(settings.redis_url.get_secret_value(), plot.TENANTS) as listener,
        Traffic(engine) as traffic,
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        screen.tell("redis", f"listening to the channels of {' and '.join(plot.TENANTS)}")
        with _sweeper(screen, settings) as sweeper, screen.live():
            director = Director(screen, connection, traffic, listener, sweeper)
            quiet = director.play(waves)
        with engine.connect() as judging:
            return verdict.judge(judging, waves, traffic, listener.heard, quiet, director.linked_by)


@contextmanager
def _sweeper(screen: Screen, settings: Settings) -> Iterator[Sweeper]:
    """Start the worker, and say when it is being stopped."""
    screen.tell("worker", f"starting {COMMAND}")
    with worker(settings) as sweeper:
        try:
            yield sweeper
        finally:
            screen.tell("worker", "stopping")
