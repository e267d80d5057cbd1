"""The demo: webhooks that arrive before their delivery's commit are linked, on real servers from wheels."""

from __future__ import annotations

import logging
import os
import signal
import sys

from mailglass_reconcile import make_beat_schedule, runtime
from mailglass_reconcile.demo import report
from mailglass_reconcile.demo.environment import Demo, exit_on_signal, print_event, print_line
from mailglass_reconcile.demo.receiver import ReceiverProcess
from mailglass_reconcile.demo.scenario import CALLS, LINK, OPEN, RACE
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers
from mailglass_reconcile.testing.processes import ENDING_SIGNALS, Process, closing

RECENT_SECONDS = 0.25
START = "from mailglass_reconcile import demo; demo.run_worker()"
# A schedule in memory: in a file, Python 3.13 keeps it in SQLite, which now and then refuses beat ("locking protocol").
WORKER = "worker -B -c 1 --scheduler celery.beat.Scheduler --without-gossip --without-mingle --loglevel WARNING"


def main() -> int:
    """Run the demo with its own settings; return 0, or 1 if a promise was broken.

    A signal raises SystemExit. Afterwards this process blocks the ending signals, so that none interrupts the stopping
    of a server.
    """
    logging.disable(logging.WARNING)  # the screen shows what happens
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        return 0 if _run() else 1
    except SystemExit:
        print_line("interrupted; the worker and both servers are stopped")
        raise


def keep() -> int:
    """Start both servers, migrate, print the settings for another terminal, and wait for a signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    with servers.postgres() as database_url, servers.redis() as redis_url:
        _install(database_url, redis_url)
        print_line("in another terminal, until you press Ctrl-C here (the data is deleted then):\n")
        url = runtime.get_engine().url.render_as_string(hide_password=False)  # as SQLAlchemy's `create_engine` takes it
        print_line(f"export MAILGLASS_DATABASE_URL='{url}'")
        print_line(f"export MAILGLASS_REDIS_URL='{redis_url}'")
        signal.sigwait(ENDING_SIGNALS)
    return 0


def _run() -> bool:
    """Run the four parts, and return True if every promise was kept."""
    print_line("You send an e-mail in a transaction, and the provider's webhook is faster than")
    print_line("your COMMIT. Watch what goes wrong, and how it is corrected.\n")
    print_event("demo", "starting PostgreSQL and Valkey, for this run only")
    with servers.postgres() as database_url, servers.redis() as redis_url, closing(ReceiverProcess) as receiver:
        exit_on_signal()
        _install(database_url, redis_url)
        receiver.start()
        environment = Demo(redis_url, receiver.post)
        print_line("\nAct 1: your two calls, in the wrong order", "bold")
        environment.call(CALLS)
        print_line("\nAct 2: both at the same time, and a crash", "bold")
        environment.overtake(RACE, f"{'':19}No committed row has the id that they name: they are orphans.")
        print_line(f"{'':19}It dies here, before broadcast, which would link them.")
        print_line("\nAct 3: a sweep, and a link within a second", "bold")
        environment.sweep()
        environment.show_links(RACE)
        print_event("worker", f"starting Celery with beat: a recent sweep every {RECENT_SECONDS:g} s")
        with closing(lambda: Process("the demo's Celery worker")) as environment.worker:
            environment.worker.launch(sys.executable, "-P", "-c", START, environment={**os.environ})
            environment.until(lambda: environment.recent_sweeps > 0)
            environment.overtake(LINK)
            environment.show_links(LINK)
            print_line("\nAct 4: what stays open, and why", "bold")
            environment.overtake(OPEN)
            environment.sweep()
            environment.poll()
        exit_on_signal()
        return report.print_report(environment)


def _install(database_url: str, redis_url: str) -> None:
    """Replace the settings in the environment by those of the servers, and migrate."""
    for name in [name for name in os.environ if name.startswith(("MAILGLASS_", "CELERY_"))]:
        del os.environ[name]
    os.environ |= {"MAILGLASS_DATABASE_URL": database_url, "MAILGLASS_REDIS_URL": redis_url}
    os.environ["MAILGLASS_GRACE_SECONDS"] = "0"  # 60 in operation; too long to watch
    runtime.configure()
    runner.migrate(runtime.get_engine(), runtime.get_settings(), lambda line: exit_on_signal())


def run_worker() -> None:
    """Run the worker: the bundled app, whose beat starts recent sweeps only, with results that the demo reads."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
    from mailglass_reconcile.celery import app  # noqa: PLC0415 - it reads the settings when it is imported

    # A full sweep every five minutes would now and then link what the demo shows a recent one to link.
    recent = make_beat_schedule(recent=RECENT_SECONDS)["mailglass-reconcile-recent"]
    recent["options"] |= {"ignore_result": False, "expires": 5}  # a busy machine may be late
    app.conf.beat_schedule = {"mailglass-reconcile-recent": recent}
    app.worker_main(WORKER.split())
