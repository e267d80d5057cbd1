"""Redis: whether it can be reached, is a master, and lets this user publish and lock; who has the lock of sweeps."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from typing import Any

from mailglass_reconcile import pubsub, runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.ops.doctor.finding import Finding, error, ok, warning
from mailglass_reconcile.pubsub import events_channel
from mailglass_reconcile.rules import unreachable
from mailglass_reconcile.rules.humanize import shown
from mailglass_reconcile.singleton.lock import LOCK_SECONDS, PREFIX, Holder, holder_of, key_of, try_lock

LOST = "links are made, but not broadcast"

GRANT = {
    "publish": "ACL SETUSER <this user> +publish '&mailglass:events:*'",
    "lock": f"ACL SETUSER <this user> +set +get +pttl +pexpire +del +evalsha +script|load '~{PREFIX}*'",
}


def checks() -> Iterator[Finding]:
    """Check the Redis of the broadcasts and of the lock."""
    client = yield from _reachable()
    if client:
        yield _broadcasts(client)
        yield _lock(client)


def _reachable() -> Generator[Finding, None, Any]:
    try:
        client = runtime.get_redis()
    except ConfigurationError as fault:
        yield error("redis", str(fault), "correct MAILGLASS_REDIS_URL")
        return None
    server = pubsub.server_of(client, "MAILGLASS_REDIS_URL")
    try:
        role = client.info("replication").get("role")
    except Exception as fault:  # whatever the client raises: a fault of the connection, or a right that is missing
        if not _denied(fault):
            said, remedy = unreachable.told_apart(fault, server)
            yield error("redis", f"cannot connect to {server.kind} at {server.place}: {said}; {LOST}", remedy)
            return None
        role = None  # a user without INFO; the check of the lock notices a replica
    if role == "slave":
        yield error(
            "redis",
            f"the {server.kind} at {server.place} is a replica: {LOST}",
            "let MAILGLASS_REDIS_URL name the master; behind Sentinel, use configure(redis=…): docs/redis.md",
        )
        return None
    yield ok("redis", f"connected to {server.kind} at {server.place}" + (", a master" if role else ""))
    return client


def _broadcasts(client: Any) -> Finding:
    try:
        client.publish(events_channel("doctor"), "")  # no JSON: our subscribers pass it over
    except Exception as fault:  # as above
        if _denied(fault):
            return error("redis_rights", f"this user may not PUBLISH on mailglass:events:*: {LOST}", GRANT["publish"])
        return _refused("redis_rights", fault)
    return ok("redis_rights", "this user may publish on mailglass:events:*")


def _lock(client: Any) -> Finding:
    try:
        try_lock(client)
    except Exception as fault:  # as above
        if _denied(fault):
            lost = "sweeps run without their lock, perhaps twice"
            return warning("lock_rights", f"this user may not take locks on {PREFIX}*: {lost}", GRANT["lock"])
        return _refused("lock_rights", fault)
    return ok("lock_rights", "the lock can be taken")


def _refused(check: str, fault: Exception) -> Finding:
    text = f"{type(fault).__name__} {fault}"
    known = next((said for word, said in _REFUSALS.items() if word in text), type(fault).__name__)
    return error(check, f"Redis refuses to write: {known}", "look at the server's log, memory and disk")


_REFUSALS = {
    "ReadOnlyError": "it is a replica",
    "OutOfMemoryError": "its memory is full (maxmemory)",
    "MISCONF": "it cannot save its data to disk",
    "NOREPLICAS": "it lacks the replicas that min-replicas-to-write asks for",
}


def _denied(fault: Exception) -> bool:
    # What a script of the lock may not do is an error of the script.
    return type(fault).__name__ == "NoPermissionError" or "ACL failure in script" in str(fault)


def holder() -> Holder | None:
    """Return who has the lock of full sweeps, or None.

    Raises:
        ConfigurationError: There is no database to tell deployments apart by.
        Exception: Redis refuses, or does not answer.
    """
    return holder_of(runtime.get_redis(), key_of(None))


def lock(before: Holder | None, known_tasks: Collection[str], queued: int | None) -> Iterator[Finding]:
    """Say who has the lock of full sweeps, and whether that is a task that somebody runs.

    Args:
        before: Who had it before the workers were asked what they run.
        known_tasks: What they run, or have taken from a queue.
        queued: Messages in the queue of sweeps; None if it cannot be counted.
    """
    now = holder()
    if now is None:
        yield ok("lock", "the lock of full sweeps is free")
        return
    left = now.seconds_left
    heal = f"redis-cli DEL {key_of(None)}"
    if left is None:
        yield warning(
            "lock", f"{shown(now.task_id)} has the lock of full sweeps without end: they are duplicates", heal
        )
        return
    since, how = max(0, LOCK_SECONDS - left), "queued" if now.is_queued else "taken or renewed"
    held = f"task {shown(now.task_id)} has the lock of full sweeps, {how} {since:.0f} s ago, for {left:.0f} s more"
    same = before is not None and before.token == now.token
    lost = same and now.task_id not in known_tasks and (queued == 0 or not now.is_queued)
    if lost:
        yield warning(
            "lock",
            f"{held}; no worker that answers knows this task: perhaps its worker was killed."
            " Sweeps that are asked for until then are duplicates of it",
            f"nothing: it expires by itself; or now {heal}",
        )
    else:
        yield ok("lock", held)
