"""One run of the demo, from the start of both servers to its last line."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from mailglass_reconcile import runtime
from mailglass_reconcile.demo import interruption, report, verdict
from mailglass_reconcile.demo.director import Director
from mailglass_reconcile.demo.interruption import Interruption
from mailglass_reconcile.demo.listener import Listener
from mailglass_reconcile.demo.plot import TENANTS, plot
from mailglass_reconcile.demo.screen import Screen
from mailglass_reconcile.demo.sweeper import RECENT_SECONDS, Sweeper, worker
from mailglass_reconcile.demo.traffic import Traffic
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers

OPENING = """\
You send an e-mail in a transaction, and the provider's webhook is faster than
your COMMIT. Watch what goes wrong, and how it is put right."""


def run() -> int:
    """Play the demo on servers of its own.

    Returns:
        0; 1 if a promise was broken; 128 and the signal's number if a signal ended it.
    """
    screen = Screen()
    with interruption.noticed() as interrupted:
        try:
            code = _play(screen, interrupted)
        except interruption.Interrupted:
            code = 0
    if interrupted.signal is not None:
        screen.say("interrupted; the worker and both servers are stopped")
        return 128 + interrupted.signal
    return code


def _play(screen: Screen, interrupted: Interruption) -> int:
    for line in OPENING.splitlines():
        screen.say(line)
    screen.say("")
    screen.tell("demo", "starting PostgreSQL and Valkey, for this run only")
    with _installation(interrupted) as settings:
        engine, story = engines.create_engine(settings), plot()
        redis_url = settings.redis_url.get_secret_value()
        with Listener(redis_url, TENANTS) as listener, Traffic(engine) as traffic:
            director = Director(screen, traffic, listener, interrupted)
            screen.title("Act 1: the race")
            director.race(story.race)
            screen.title("Act 2: a sweep, and a link within a second")
            director.sweep(story.race)
            with _sweeper(screen, settings, interrupted) as sweeper:
                director.link(story.link, sweeper)
                screen.title("Act 3: what stays open, and why")
                quiet = director.stay_open(story.open, sweeper)
            with engine.connect() as connection:
                outcome = verdict.judge(connection, story, traffic, listener.heard, quiet)
    interrupted.check()
    report.write(screen, outcome, director.linked_by)
    return 0 if all(outcome.promises.values()) else 1


@contextmanager
def _installation(interrupted: Interruption) -> Iterator[Settings]:
    """Start both servers, configure this process for them, and migrate; no variable of the environment counts."""
    with servers.postgres() as database_url, servers.redis(password=secrets.token_hex(16)) as redis_url:
        interrupted.check()
        settings = Settings(
            database_url=database_url,
            database_schema="public",
            redis_url=redis_url,
            lock_url=None,
            broker_url=None,
            grace_seconds=0,  # 60 in operation; nobody wants to watch that
            max_age_minutes=10_080,
            batch_size=2_000,
            sweep_seconds=30,
        )
        runtime.configure(settings=settings)
        try:
            runner.migrate(engines.create_engine(settings), settings, lambda line: interrupted.check())
            yield settings
        finally:
            runtime.configure()


@contextmanager
def _sweeper(screen: Screen, settings: Settings, interrupted: Interruption) -> Iterator[Sweeper]:
    screen.tell("worker", f"starting Celery with beat: a recent sweep every {RECENT_SECONDS:g} s")
    with worker(settings) as sweeper:
        try:
            yield sweeper
        finally:
            if interrupted.signal is not None:
                screen.say("stopping the worker; it may take some seconds")
