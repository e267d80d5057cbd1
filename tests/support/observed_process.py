"""A program that imports, records, receives and sweeps, and prints what it changed in its process, as JSON."""

import atexit
import datetime as dt
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import celery.signals
import sqlalchemy as sa
from celery import Celery
from sqlalchemy.orm import Session

hooks: list[list[str]] = []
register_at_fork = os.register_at_fork


def note_hook(**functions) -> None:
    """Note for which moments a module registers a function."""
    if sys._getframe(1).f_globals["__name__"].startswith("mailglass_reconcile"):
        hooks.append(sorted(functions))
    register_at_fork(**functions)


os.register_at_fork = note_hook
SIGNALS = {name: item for name, item in vars(celery.signals).items() if hasattr(item, "receivers")}
OTHERS = ("", "alembic.runtime.plugins", "celery.beat", "celery.app.trace", "celery.worker.strategy", "uvicorn.error")
for name in OTHERS:
    logging.getLogger(name)
NAMES = ["", *logging.root.manager.loggerDict]


def describe(name: str) -> list[str]:
    """Return a logger's level, filters and handlers, but not the NullHandler that a library adds to its own logger."""
    logger = logging.getLogger(name)
    handlers = [handler for handler in logger.handlers if not isinstance(handler, logging.NullHandler)]
    return [str(logger.level), *map(str, logger.filters), *map(str, handlers)]


def handlers_of_signals() -> dict[str, str]:
    """Return the handler of each signal of the system."""
    return {signal.Signals(number).name: str(signal.getsignal(number)) for number in list(signal.Signals)}


def state() -> dict[str, object]:
    """Return what an application would notice."""
    moments = [moment for moment in dir(Session.dispatch) if moment.startswith(("after_", "before_", "do_"))]
    return {
        "loggers": {name: describe(name) for name in NAMES},
        "signals": handlers_of_signals(),
        "celery": {name: len(item.receivers or ()) for name, item in SIGNALS.items()},
        "sessions": {moment: len(list(getattr(Session().dispatch, moment))) for moment in moments},
        "threads": {thread.name: str(thread.daemon) for thread in threading.enumerate()},
        "zone": {"process": [*time.tzname, os.environ.get("TZ")]},
        "collector": {"state": [gc.isenabled(), *gc.get_threshold(), gc.get_freeze_count()]},
        "process": {"environment": dict(os.environ), "path": list(sys.path), "folder": str(Path.cwd())},
        "exits": {"functions": atexit._ncallbacks()},
    }


before = state()

from mailglass_reconcile import (  # noqa: E402
    Sent,
    WebhookEvent,
    configure,
    dispatch,
    flush,
    prune,
    reconcile,
    record_send,
    record_webhook,
    runtime,
    tasks,
    webhooks,  # noqa: F401
)
from mailglass_reconcile.contrib import anymail  # noqa: E402, F401
from mailglass_reconcile.store.engines import database_url  # noqa: E402
from mailglass_reconcile.store.migration import runner  # noqa: E402, F401

worker = SimpleNamespace(app=Celery("shop", broker="memory://", set_as_current=False))
for name in ("beat_init", "celeryd_after_setup", "worker_process_init"):
    SIGNALS[name].send(sender=None, instance=worker)

engine = sa.create_engine(database_url(runtime.get_settings()), connect_args={"options": "-c TimeZone=Asia/Tokyo"})
configure(engine=engine)
SESSION = sa.text("SELECT current_setting('TimeZone'), current_setting('search_path')")
with Session(engine) as session:
    session_before = session.execute(SESSION).one()
    record_send(session, provider="postmark", sent=[Sent(recipient="ada@example.com", message_id="m-1")])
    event = WebhookEvent(type="opened", occurred_at=dt.datetime.now(dt.UTC), provider_event_id="e", message_id="m-1")
    record_webhook(session, provider="postmark", events=[event])
    is_session_kept = session.execute(SESSION).one() == session_before
    session.commit()
flush()

during: dict[str, object] = {"signals": set(), "collector": set()}


def observe(*_arguments) -> None:
    """Note what is different while a statement runs."""
    handlers = handlers_of_signals()
    during["signals"] |= {name for name, handler in handlers.items() if handler != before["signals"][name]}
    during["collector"].add(gc.get_threshold()[0])


sa.event.listen(sa.Engine, "before_cursor_execute", observe)
reconcile()
as_application = {name: sorted(values) for name, values in during.items()}
tasks._worker_pid = -1  # as in a process of the pool prefork
for values in during.values():
    values.clear()
for task in (tasks.reconcile, tasks.reconcile_recent):
    task()
in_worker = {name: sorted(values) for name, values in during.items()}
sa.event.remove(sa.Engine, "before_cursor_execute", observe)
dispatch()
prune()

after = state()
changes = {
    area: {name: value for name, value in values.items() if before[area].get(name) != value}
    for area, values in after.items()
}
new_loggers = sorted(
    name for name in logging.root.manager.loggerDict if name.startswith("mailglass") and describe(name) != ["0"]
)
observed = {
    "changes": changes,
    "hooks": hooks,
    "session": is_session_kept,
    "own loggers": new_loggers,
    "application": as_application,
    "worker": in_worker,
}
print(json.dumps(observed))  # noqa: T201
