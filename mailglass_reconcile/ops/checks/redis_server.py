"""Redis: whether it can be reached, is a master, and lets this user publish and lock."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from mailglass_reconcile import pubsub, runtime
from mailglass_reconcile.errors import ConfigurationError, docs_url
from mailglass_reconcile.ops.checks.check import Finding, check, error, ok, warning
from mailglass_reconcile.pubsub import TEST_MESSAGE, events_channel
from mailglass_reconcile.rules import connection_errors
from mailglass_reconcile.singleton.lock import PREFIX, probe_lock

NOT_BROADCAST = "links are made, but not broadcast"
DENIED = ("NoPermissionError", "ACL failure in script")

_REFUSALS = {
    "ReadOnlyError": "it is a replica",
    "OutOfMemoryError": "its memory is full (maxmemory)",
    "MISCONF": "it cannot save its data to disk",
    "NOREPLICAS": "it has fewer replicas than min-replicas-to-write requires",
}

_UNKNOWN_COMMAND = re.compile(r"unknown command '(\w+)'", re.IGNORECASE)


@dataclass
class Redis:
    """The Redis of the broadcasts and the lock, and whether one was configured or has been used."""

    is_expected: bool
    fault: Exception | None = None
    """The error that prevents a connection."""

    @cached_property
    def client(self) -> Any:
        return runtime.get_redis()


@check("redis", needs="redis")
def redis(connection: Redis) -> Iterator[Finding]:
    """Redis can be reached and is a master; it is required only with Celery or if one is configured."""
    try:
        server = pubsub.server_of(connection.client, "MAILGLASS_REDIS_URL")
        role = connection.client.info("replication").get("role")
    except ConfigurationError as fault:
        connection.fault = fault
        yield error(str(fault), "correct MAILGLASS_REDIS_URL")
        return
    except Exception as fault:  # any error of the client's: of the connection, or a missing privilege
        role = None
        if not _is_denied(fault):
            connection.fault = fault
            cause, remedy = connection_errors.classify(fault, server)
            message = f"cannot connect to {server.kind} at {server.location}: {cause}; {NOT_BROADCAST}"
            yield (
                error(message, remedy)
                if connection.is_expected
                else ok("no Redis is configured, so there are no live updates")
            )
            return
    if role == "slave":
        connection.fault = ConfigurationError("a replica")
        yield error(
            f"the {server.kind} at {server.location} is a replica: {NOT_BROADCAST}",
            "let MAILGLASS_REDIS_URL name the master; behind Sentinel, use configure(redis=…):"
            f" {docs_url('celery.md#sentinel')}",
        )
    else:
        yield ok(f"connected to {server.kind} at {server.location}")


@check("redis_privileges", needs="redis")
def redis_privileges(connection: Redis) -> Iterator[Finding]:
    """This user may publish."""
    grant = "ACL SETUSER <this user> +publish '&mailglass:events:*'"
    denied = error(f"this user may not PUBLISH on mailglass:events:*: {NOT_BROADCAST}", grant)
    test = partial(connection.client.publish, events_channel("doctor"), TEST_MESSAGE)
    yield _try_write(test, denied, "this user may publish")


@check("lock_privileges", needs="redis")
def lock_privileges(connection: Redis) -> Iterator[Finding]:
    """The lock of sweeps can be taken."""
    grant = f"ACL SETUSER <this user> +set +get +pttl +pexpire +del +evalsha +script|load '~{PREFIX}*'"
    denied = warning(f"this user may not take locks on {PREFIX}*: sweeps run without their lock, perhaps twice", grant)
    yield _try_write(lambda: probe_lock(connection.client), denied, "the lock can be taken")


def _try_write(action: Callable[[], object], denied: Finding, message: str) -> Finding:
    try:
        action()
    except Exception as fault:  # any error of the client's
        if _is_denied(fault):
            return denied
        text = f"{type(fault).__name__} {fault}"
        if unknown := _UNKNOWN_COMMAND.search(text):
            lacking, consequence = f"this Redis has no command {unknown[1]}", denied.message.rpartition(": ")[2]
            step = "remove its `rename-command` from the server's configuration, or use another Redis"
            return denied._replace(message=f"{lacking}: {consequence}", remedy=step)
        reason = next((reason for word, reason in _REFUSALS.items() if word in text), type(fault).__name__)
        because = ("redis_privileges",)
        return error(f"Redis refuses to write: {reason}", "check the server's log, memory and disk", because)
    return ok(message)


def _is_denied(fault: Exception) -> bool:
    """Return True if a privilege is missing; for the lock's script, Redis reports an error of the script."""
    return any(word in f"{type(fault).__name__} {fault}" for word in DENIED)
