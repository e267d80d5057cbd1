"""Celery: the broker, the workers that answer, the queues of our tasks and who consumes them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from typing import Any

from celery import Celery, _state
from kombu.connection import Connection

from mailglass_reconcile import pubsub, runtime
from mailglass_reconcile.ops.checks.check import Finding, check, error, ok, warning
from mailglass_reconcile.ops.checks.configuration import has_broker_url
from mailglass_reconcile.rules import connection_errors
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.connection_errors import Server
from mailglass_reconcile.rules.humanize import pluralize, sanitize
from mailglass_reconcile.schedule import (
    DISPATCH_TASK,
    PRUNE_TASK,
    RECENT_TASK,
    SWEEP_TASK,
    find_queues,
    queue_name,
    scheduled_options,
)
from mailglass_reconcile.singleton.lock import Holder, load_sweep_holder

ANSWER_SECONDS = (1.0, 2.0)
"""Seconds that workers have to answer; the second limit, if none has answered within the first."""

CONNECT_SECONDS = 2

ELSEWHERE = "if your own app runs the sweeps, name its module in MAILGLASS_IMPORTS and run the doctor again; otherwise "


def own_app() -> Celery | None:
    """Return the Celery app that an application has made in this thread, as a module of MAILGLASS_IMPORTS may.

    `celery.current_app` would make one if there is none.
    """
    return _state._tls.current_app


def schedules_sweeps() -> bool:
    """Return True if the application's own Celery app has an entry for sweeps in its schedule."""
    app = own_app()
    try:
        return app is not None and any(entry.get("task") == SWEEP_TASK for entry in app.conf.beat_schedule.values())
    except Exception:  # the app reads its settings now; the checks of Celery report what they lack
        return True


class Cluster(ExitStack):
    """A Celery app, its broker, and what its workers say; each is asked once."""

    def __init__(self, app: Celery) -> None:
        """Connect to the broker of *app*."""
        super().__init__()
        self.app = app
        options = {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": CONNECT_SECONDS}
        scheme = str(app.conf.broker_read_url or app.conf.broker_url or "").partition("://")[0]
        options = options if "redis" in scheme else {}
        self.connection: Connection = self.enter_context(
            app.connection_for_read(connect_timeout=CONNECT_SECONDS, transport_options=options)
        )

    @cached_property
    def server(self) -> Server:
        """The address of the broker."""
        connection = self.connection
        host = connection.hostname
        if connection.transport_cls and "redis" in str(connection.transport_cls) and host and "://" in host:
            host = host.partition("://")[2]
        return Server(
            "the broker",
            connection_errors.format_location(host, connection.port, connection.virtual_host),
            self._broker_setting,
        )

    @property
    def _broker_setting(self) -> str:
        if not self.is_bundled:
            return "broker_url of your Celery app"
        return "CELERY_BROKER_URL" if has_broker_url() else "MAILGLASS_REDIS_URL"

    @cached_property
    def before(self) -> Holder | None:
        """The holder of the lock of full sweeps before the workers are asked for their tasks."""
        try:
            return load_sweep_holder()
        except Exception:  # the checks of Redis report the error
            return None

    @cached_property
    def answering(self) -> list[str]:
        """The workers that answer."""
        soon, later = ANSWER_SECONDS
        _ = self.before
        return list(self._inspect(soon).ping() or self._inspect(later).ping() or {})

    @cached_property
    def queues(self) -> Mapping[str, set[str]]:
        """The queues that each worker consumes."""
        replies = self._inspector.active_queues() or {} if self.answering else {}
        return {name: {queue["name"] for queue in replies.get(name) or []} for name in self.answering}

    @cached_property
    def registered(self) -> Mapping[str, Any]:
        """The tasks that each worker has registered."""
        return (self._inspector.registered() or {}) if self.answering else {}

    @property
    def _inspector(self) -> Any:
        """Celery's inspector of the workers that answer; each request ends as soon as all have answered."""
        return self._inspect(ANSWER_SECONDS[0], destination=self.answering, limit=len(self.answering))

    def _inspect(self, seconds: float, **options: Any) -> Any:
        return self.app.control.inspect(timeout=seconds, connection=self.connection, **options)

    @property
    def is_bundled(self) -> bool:
        """Return True if the application has no Celery app of its own."""
        return bool(self.app.main == "mailglass_reconcile")

    @property
    def start(self) -> str:
        """The step that starts a worker of this app, and of no other: another one would take other tasks too."""
        if self._module is None:
            return f"start a worker of your Celery app {sanitize(self.app.main or '?')}"
        return f"start a worker: `{self.command('worker')}`"

    @property
    def _module(self) -> str | None:
        """The module that has the app, as `celery -A` finds it."""
        imports = runtime.get_settings().imports.replace(" ", "").split(",")
        for name in (*imports, *(name for name in list(sys.modules) if name.endswith(".celery"))):
            module = sys.modules.get(name)
            if module is not None and any(value is self.app for value in vars(module).values()):
                return name.removesuffix(".celery")
        return None

    def command(self, name: str) -> str:
        """Return the command line of a subcommand of Celery's for this app."""
        return f"celery -A {self._module or sanitize(self.app.main or '?')} {name}"

    @property
    def is_waiting(self) -> bool:
        """True if the workers consume the queue of the sweep, in which nothing waits, and no sweep runs."""
        queues = self.queues_of(SWEEP_TASK)
        consumed = {queue for names in self.queues.values() for queue in names}
        return self.before is None and consumed.issuperset(queues) and not any(map(self.messages, queues))

    def tasks(self) -> list[str]:
        """Return our tasks that have to run: scheduled tasks, the sweep, the prune, and the dispatch of handlers."""
        more = [RECENT_TASK] if scheduled_options(self.app, RECENT_TASK) else []
        dispatches = registry.types_with_handlers() or scheduled_options(self.app, DISPATCH_TASK)
        return [SWEEP_TASK, PRUNE_TASK, *more, *([DISPATCH_TASK] if dispatches else [])]

    def queues_of(self, task: str) -> list[str]:
        """Return the queues of a task."""
        return find_queues(self.app, task)

    def overridden_queue(self, task: str) -> str | None:
        """Return the queue to which the app routes a task, if an entry of the schedule names another one."""
        router = self.app.amqp.router
        routed = queue_name(router.expand_destination(router.lookup_route(task) or {}))
        return routed if routed and self.queues_of(task) != [routed] else None

    def messages(self, queue: str) -> int | None:
        """Count the messages that wait in a queue; None if the broker cannot."""
        try:
            with self.connection.channel() as channel:
                return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except Exception as fault:  # Redis keeps no empty queue
            return 0 if "NOT_FOUND" in str(fault) or getattr(fault, "code", None) == 404 else None


@check("broker", needs="celery")
def broker(cluster: Cluster) -> Iterator[Finding]:
    """It can be reached."""
    server = cluster.server
    try:
        cluster.connection.connect()
    except Exception as fault:  # each broker's driver has errors of its own
        cause, remedy = connection_errors.classify(fault, server)
        redis = pubsub.server_of(runtime.get_redis(), "")
        message = f"cannot connect to {server.kind} at {server.location}: {cause}; no task can run"
        yield error(message, remedy, ("redis",) if redis.location == server.location else ())
    else:
        yield ok(f"connected to {server.kind} at {server.location}")


@check("worker", needs="celery")
def worker(cluster: Cluster) -> Iterator[Finding]:
    """A worker answers."""
    before = cluster.before
    if cluster.answering:
        yield ok(f"{pluralize(len(cluster.answering), 'Celery worker answers', 'Celery workers answer')}")
    elif before is not None and not before.is_queued:
        yield warning(
            f"no Celery worker answers within {sum(ANSWER_SECONDS):g} s, but the lock says that task"
            f" {sanitize(before.task_id)} is sweeping: a worker with the pool `solo` answers only when it is done",
            f"run the doctor again in a minute; if none answers then, {cluster.start}",
        )
    else:
        yield error(
            f"no Celery worker of the app {sanitize(cluster.app.main or '?')} answers within {sum(ANSWER_SECONDS):g} s",
            (ELSEWHERE if cluster.is_bundled else "") + cluster.start + _unreadable_message(cluster),
        )


def _unreadable_message(cluster: Cluster) -> str:
    """Return the steps for a message in Redis that Celery cannot read, which ends each worker at its start."""
    queues = sorted({queue for task in cluster.tasks() for queue in cluster.queues_of(task) if cluster.messages(queue)})
    if cluster.connection.transport.driver_type != "redis" or not queues:
        return ""
    prefix = (cluster.connection.transport_options or {}).get("global_keyprefix", "")
    keys = [sanitize(f"{prefix}{queue}") for queue in queues]
    look = " and ".join(f"`redis-cli LRANGE {key} 0 -1`" for key in keys)
    delete = " and ".join(f"`redis-cli DEL {key}`" for key in keys)
    only_ours = f", or all messages with {delete}, because only ours are there" if cluster.is_bundled else ""
    return (
        f"; if each worker ends at its start, a message cannot be read: look for it with {look}, remove it with"
        f" `redis-cli LREM {keys[0] if len(keys) == 1 else 'QUEUE'} 0 MESSAGE`{only_ours}; meanwhile, let cron run"
        " `mailglass-reconcile sweep`"
    )


@check("queues", needs="celery")
def queues(cluster: Cluster) -> Iterator[Finding]:
    """Each of our tasks has a worker that consumes its queue and knows it."""
    by_queue: dict[str, list[str]] = {}
    for task in cluster.tasks():
        for name in cluster.queues_of(task):
            by_queue.setdefault(name, []).append(task)
    for name, tasks in by_queue.items():
        yield from _queue(cluster, name, tasks)


def _queue(cluster: Cluster, name: str, tasks: list[str]) -> Iterator[Finding]:
    consumers = [worker for worker, queues in cluster.queues.items() if name in queues]
    waiting, task_names = cluster.messages(name), " and ".join(tasks)
    size = "" if waiting is None else f", {pluralize(waiting, 'message waits', 'messages wait')} there"
    informed = any(all(_knows(cluster, worker, task) for task in tasks) for worker in cluster.answering)
    if not consumers and informed and not waiting and cluster.is_bundled:
        yield ok(f"a worker knows {task_names}, and nothing waits in the bundled app's queue {sanitize(name)}")
    elif not consumers and cluster.answering:
        step = cluster.start
        step = (
            f"{ELSEWHERE}{step[:-1]} -Q {sanitize(name)}`"
            if cluster.is_bundled
            else f"{step}, with `-Q {sanitize(name)}`"
        )
        yield error(f"no worker consumes the queue {sanitize(name)} of {task_names}{size}", step)
    elif not consumers and waiting:
        message = (
            f"{pluralize(waiting, 'message waits', 'messages wait')} in the queue {sanitize(name)} of {task_names}"
        )
        yield error(message, cluster.start, ("worker",))
    elif lacking := [
        task for task in tasks if consumers and not any(_knows(cluster, worker, task) for worker in consumers)
    ]:
        yield error(
            f"the workers that consume the queue {sanitize(name)} do not know {' and '.join(lacking)}{size}",
            'call app.autodiscover_tasks(["mailglass_reconcile"]) in your app, then restart its workers',
        )
    elif consumers:
        consuming = pluralize(len(consumers), "worker consumes", "workers consume")
        yield ok(f"{consuming} the queue {sanitize(name)} of {task_names}{size}")


def _knows(cluster: Cluster, worker: str, task: str) -> bool:
    return worker not in cluster.registered or any(task in entry for entry in cluster.registered[worker])


@check("schedule", needs="celery")
def schedule(cluster: Cluster) -> Iterator[Finding]:
    """This app's beat schedule has entries for sweeps and, if there are handlers, for their dispatch.

    They follow the app's routes.
    """
    conf = cluster.app.conf
    scheduled = {entry.get("task") for entry in conf.beat_schedule.values()}
    required = {SWEEP_TASK: "sweeps", **({DISPATCH_TASK: "handlers"} if registry.types_with_handlers() else {})}
    lacking = [work for task, work in required.items() if task not in scheduled]
    if "PersistentScheduler" not in str(conf.beat_scheduler or "PersistentScheduler"):
        yield ok("a custom scheduler stores the schedule, so it cannot be checked here")
    elif lacking:
        yield warning(
            f"the beat schedule of the app {sanitize(cluster.app.main or '?')} has no entry for"
            f" {' and '.join(lacking)}",
            "add `beat_schedule` of mailglass_reconcile to it",
        )
    elif overridden := {task: queue for task in cluster.tasks() if (queue := cluster.overridden_queue(task))}:
        scheduled_queues = sorted({queue for task in overridden for queue in cluster.queues_of(task)})
        yield warning(
            f"the beat schedule sends {' and '.join(overridden)} to the queue"
            f" {' and '.join(map(sanitize, scheduled_queues))}, although the app routes them to"
            f" {' and '.join(map(sanitize, sorted(set(overridden.values()))))}",
            "leave `queue=` out of make_beat_schedule() to follow `task_routes`, or correct the routes",
        )
    else:
        yield ok(f"it has {' and '.join(required.values())}")
