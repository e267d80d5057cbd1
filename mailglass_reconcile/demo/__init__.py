"""The demo: webhooks that arrive before their delivery's commit, and what links them, on real servers from wheels."""

from __future__ import annotations

import logging
import os
import signal
import sys

from mailglass_reconcile import make_beat_schedule, runtime
from mailglass_reconcile.demo import report
from mailglass_reconcile.demo.environment import Stage, check, say, tell
from mailglass_reconcile.demo.receiver import ReceiverProcess
from mailglass_reconcile.demo.scenario import CALLS, LINK, OPEN, RACE
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers
from mailglass_reconcile.testing.processes import ENDING_SIGNALS, Process, closing

RECENT_SECONDS = 0.25
START = "from mailglass_reconcile import demo; demo.work()"
# A schedule in memory: in a file, Python 3.13 keeps it in SQLite, which now and then refuses beat ("locking protocol").
WORKER = "worker -B -c 1 --scheduler celery.beat.Scheduler --without-gossip --without-mingle --loglevel WARNING"


def main() -> int:
    """Play the demo on settings of its own; return 0, or 1 if a promise was broken.

    A signal raises SystemExit. Afterwards this process blocks the signals that would end it: none may strike while a
    server is being stopped.
    """
    logging.disable(logging.WARNING)  # the screen shows what happens
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        return 0 if _play() else 1
    except SystemExit:
        say("interrupted; the worker and both servers are stopped")
        raise


def _play() -> bool:
    """Play the four acts, and return whether every promise was kept."""
    say("You send an e-mail in a transaction, and the provider's webhook is faster than")
    say("your COMMIT. Watch what goes wrong, and how it is corrected.\n")
    tell("demo", "starting PostgreSQL and Valkey, for this run only")
    with servers.postgres() as database_url, servers.redis() as redis_url, closing(ReceiverProcess) as receiver:
        check()
        _install(database_url, redis_url)
        receiver.start()
        stage = Stage(redis_url, receiver.post)
        say("\nAct 1: your two calls, in the wrong order", "bold")
        stage.call(CALLS)
        say("\nAct 2: both at the same time, and a crash", "bold")
        stage.overtake(RACE, f"{'':19}No committed row has the id that they name: they are orphans.")
        say(f"{'':19}It dies here, before broadcast, which would link them.")
        say("\nAct 3: a sweep, and a link within a second", "bold")
        stage.sweep()
        stage.show_links(RACE)
        tell("worker", f"starting Celery with beat: a recent sweep every {RECENT_SECONDS:g} s")
        with closing(lambda: Process("the demo's Celery worker")) as stage.worker:
            stage.worker.launch(sys.executable, "-P", "-c", START, environment={**os.environ})
            stage.until(lambda: stage.recent_sweeps > 0)
            stage.overtake(LINK)
            stage.show_links(LINK)
            say("\nAct 4: what stays open, and why", "bold")
            stage.overtake(OPEN)
            stage.sweep()
            stage.poll()
        check()
        return report.write(stage)


def _install(database_url: str, redis_url: str) -> None:
    """Put the servers into the environment in place of other settings, and migrate."""
    for name in [name for name in os.environ if name.startswith(("MAILGLASS_", "CELERY_"))]:
        del os.environ[name]
    os.environ |= {"MAILGLASS_DATABASE_URL": database_url, "MAILGLASS_REDIS_URL": redis_url}
    os.environ["MAILGLASS_GRACE_SECONDS"] = "0"  # 60 in operation; too long to watch
    runtime.configure()
    runner.migrate(runtime.get_engine(), runtime.get_settings(), lambda line: check())


def work() -> None:
    """Be the worker: the bundled app, whose beat starts recent sweeps only, with results that the demo reads."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
    from mailglass_reconcile.celery import app  # noqa: PLC0415 - it reads the settings when it is imported

    # A full sweep every five minutes would now and then link what the demo shows a recent one to link.
    recent = make_beat_schedule(recent=RECENT_SECONDS)["mailglass-reconcile-recent"]
    recent["options"] |= {"ignore_result": False, "expires": 5}  # a busy machine may be late
    app.conf.beat_schedule = {"mailglass-reconcile-recent": recent}
    app.worker_main(WORKER.split())
