"""Celery: the broker, the workers that answer, the queues of our tasks and who consumes them, the lock."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from celery import Celery, _state
from kombu.connection import Connection

from mailglass_reconcile.ops.doctor import redis
from mailglass_reconcile.ops.doctor.finding import Finding, attempt, error, ok, warning
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules import unreachable
from mailglass_reconcile.rules.humanize import counted, shown
from mailglass_reconcile.rules.unreachable import Server
from mailglass_reconcile.schedule import DISPATCH_TASK, PRUNE_TASK, RECENT_TASK, SWEEP_TASK
from mailglass_reconcile.singleton.lock import Holder

ANSWER_SECONDS = (1.0, 2.0)
"""How long workers have to answer; the second, if none has answered within the first."""

CONNECT_SECONDS = 2

ELSEWHERE = "if your own app runs the sweeps, name its module in MAILGLASS_IMPORTS, so that it is found here"


class Workers(NamedTuple):
    """What the workers that answer say: the queues that each consumes, its tasks, the ids that it runs or has taken."""

    queues: Mapping[str, Any]
    registered: Mapping[str, Any]
    taken: frozenset[str]


def own_app() -> Celery | None:
    """Return the Celery app that an application has made in this thread, as a module of MAILGLASS_IMPORTS may.

    `celery.current_app` would make one if there is none.
    """
    return _state._tls.current_app


def checks(app: Celery, setting: str) -> Iterator[Finding]:
    """Check Celery as *app* has it; *setting* says where its broker is."""
    before = _holder()
    options = {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": CONNECT_SECONDS}
    options = options if "redis" in _scheme(app) else {}
    with app.connection_for_read(connect_timeout=CONNECT_SECONDS, transport_options=options) as connection:
        server = Server("the broker", _place(connection), setting)
        try:
            connection.connect()
        except Exception as fault:  # each broker's driver has errors of its own
            said, remedy = unreachable.told_apart(fault, server)
            yield error("broker", f"cannot connect to {server.kind} at {server.place}: {said}; no task can run", remedy)
            return
        yield ok("broker", f"connected to {server.kind} at {server.place}")
        workers = _ask(app, connection)
        yield _answering(app, workers, before)
        counts = {task: _messages(app, connection, task) for task in _tasks(app)}
        yield from attempt("queues", lambda: _queues(app, workers, counts))
        yield from attempt("schedule", lambda: schedule(app))
        yield from attempt("lock", lambda: redis.lock(before, workers.taken, counts[SWEEP_TASK]))


def _holder() -> Holder | None:
    try:
        return redis.holder()
    except Exception:  # the check of the lock asks again, and says so
        return None


def _scheme(app: Celery) -> str:
    return str(app.conf.broker_read_url or app.conf.broker_url or "").partition("://")[0]


def _place(connection: Connection) -> str:
    host = connection.hostname
    if connection.transport_cls and "redis" in str(connection.transport_cls) and host and "://" in host:
        host = host.partition("://")[2]
    return unreachable.place(host, connection.port, connection.virtual_host)


def _ask(app: Celery, connection: Connection) -> Workers:
    """Ask the workers; each question but the first ends as soon as all who answered that one have answered."""
    soon, later = ANSWER_SECONDS
    answering = _inspect(app, connection, soon).ping() or _inspect(app, connection, later).ping() or {}
    if not answering:
        return Workers({}, {}, frozenset())
    inspection = _inspect(app, connection, soon, destination=list(answering), limit=len(answering))
    taken = [one for reply in ((inspection.active() or {}), (inspection.reserved() or {})) for one in reply.values()]
    ids = frozenset(request["id"] for requests in taken for request in requests)
    queues = inspection.active_queues() or {}
    return Workers({name: queues.get(name) or [] for name in answering}, inspection.registered() or {}, ids)


def _inspect(app: Celery, connection: Connection, seconds: float, **options: Any) -> Any:
    return app.control.inspect(timeout=seconds, connection=connection, **options)


def _answering(app: Celery, workers: Workers, before: Holder | None) -> Finding:
    if workers.queues:
        return ok("worker", f"{counted(len(workers.queues), 'Celery worker answers', 'Celery workers answer')}")
    if before is not None and not before.is_queued:
        return warning(
            "worker",
            f"no Celery worker answers within {sum(ANSWER_SECONDS):g} s, but the lock says that task"
            f" {shown(before.task_id)} is sweeping: a worker with the pool `solo` answers only when it is done",
            f"run the doctor again in a minute; if none answers then, {_start(app)}",
        )
    return error(
        "worker",
        f"no Celery worker of the app {shown(app.main or '?')} answers within {sum(ANSWER_SECONDS):g} s:"
        " sweeps that beat starts do not run",
        _start(app) + (f"; {ELSEWHERE}" if _is_bundled(app) else ""),
    )


def _is_bundled(app: Celery) -> bool:
    """Whether no app of the application's own was found."""
    return bool(app.main == "mailglass_reconcile")


def _start(app: Celery) -> str:
    """Return the step that starts a worker of this app, and of no other: another one would take other tasks too."""
    held = sorted(
        (attribute not in ("app", "celery"), len(module), module, attribute)
        for module, loaded in list(sys.modules.items())
        for attribute, value in list(vars(loaded).items() if isinstance(loaded, ModuleType) else ())
        if value is app and not module.startswith("celery.") and module != "__main__"
    )
    if not held:
        return f"start a worker of your Celery app {shown(app.main or '?')}"
    named_otherwise, _, module, attribute = held[0]
    return f"start a worker: `celery -A {module.removesuffix('.celery')}{f':{attribute}' * named_otherwise} worker`"


def _tasks(app: Celery) -> list[str]:
    """Return our tasks that somebody has to run: those of the schedule, the sweep and the prune, and if there are
    handlers, their dispatch."""
    scheduled = [entry.get("task") for entry in app.conf.beat_schedule.values()]
    more = [task for task in (RECENT_TASK, DISPATCH_TASK) if task in scheduled]
    hooked = [DISPATCH_TASK] if registry.types() and DISPATCH_TASK not in more else []
    return [SWEEP_TASK, PRUNE_TASK, *more, *hooked]


def _queue_of(app: Celery, task: str) -> str | None:
    queue = app.amqp.router.route({}, task).get("queue")
    return None if queue is None else str(getattr(queue, "name", queue))


def _messages(app: Celery, connection: Connection, task: str) -> int | None:
    """Return how many messages wait in the queue of *task*; None if the broker cannot say."""
    name = _queue_of(app, task)
    if name is None:
        return None
    try:
        with connection.channel() as channel:
            return int(channel.queue_declare(queue=name, passive=True).message_count)
    except Exception as fault:  # Redis keeps no empty queue
        return 0 if "NOT_FOUND" in str(fault) or getattr(fault, "code", None) == 404 else None


def _queues(app: Celery, workers: Workers, counts: Mapping[str, int | None]) -> Iterator[Finding]:
    by_queue: dict[str, list[str]] = {}
    for task in counts:
        name = _queue_of(app, task)
        if name is not None:
            by_queue.setdefault(name, []).append(task)
    for name, tasks in by_queue.items():
        consumers = [worker for worker, queues in workers.queues.items() if name in {queue["name"] for queue in queues}]
        waiting = counts[tasks[0]]
        size = "" if waiting is None else f", {counted(waiting, 'message waits', 'messages wait')} there"
        which = " and ".join(tasks)
        informed = [worker for worker in workers.queues if all(_knows(workers, worker, task) for task in tasks)]
        if not consumers and informed and not waiting and _is_bundled(app):
            knowing = counted(len(informed), "worker knows", "workers know")
            yield ok("queues", f"{knowing} {which}, and nothing waits in the bundled app's queue {shown(name)}")
            continue
        if not consumers:
            step = _start(app)
            step = f"{step[:-1]} -Q {shown(name)}`; {ELSEWHERE}" if _is_bundled(app) else f"{step}, for that queue"
            yield error("queues", f"no worker consumes the queue {shown(name)} of {which}{size}", step)
            continue
        lacking = [task for task in tasks if not any(_knows(workers, worker, task) for worker in consumers)]
        if lacking:
            yield error(
                "queues",
                f"the workers that consume the queue {shown(name)} do not know {' and '.join(lacking)}{size}",
                'call app.autodiscover_tasks(["mailglass_reconcile"]) in your app, then restart its workers',
            )
        else:
            consuming = counted(len(consumers), "worker consumes", "workers consume")
            yield ok("queues", f"{consuming} the queue {shown(name)} of {which}{size}")


def _knows(workers: Workers, worker: str, task: str) -> bool:
    return worker not in workers.registered or any(task in one for one in workers.registered[worker])


def schedule(app: Celery) -> Iterator[Finding]:
    """Check that beat would ask for sweeps, and for dispatches if there are handlers, with this app's schedule.

    The runs say whether beat does.
    """
    entries = {entry.get("task"): name for name, entry in app.conf.beat_schedule.items()}
    wanted = {SWEEP_TASK: "sweeps", **({DISPATCH_TASK: "handlers"} if registry.types() else {})}
    lacking = [what for task, what in wanted.items() if task not in entries]
    if "PersistentScheduler" not in str(app.conf.beat_scheduler or "PersistentScheduler"):
        yield ok("schedule", "a scheduler of its own keeps it")
    elif lacking:
        yield warning(
            "schedule",
            f"the beat schedule of the app {shown(app.main or '?')} has no entry for {' and '.join(lacking)}",
            "add `beat_schedule` of mailglass_reconcile to it; or let cron run `mailglass-reconcile sweep`, and"
            " `mailglass-reconcile dispatch` if you have handlers",
        )
    else:
        yield ok("schedule", f"it has {', '.join(entries[task] for task in wanted)}")
