"""Redis: whether it can be reached, is a master, and lets this user publish and lock; who has the lock of sweeps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any

from mailglass_reconcile import pubsub, runtime
from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.ops.doctor.finding import Finding, error, ok, warning
from mailglass_reconcile.pubsub import TIMEOUT_SECONDS, events_channel, within
from mailglass_reconcile.rules import unreachable
from mailglass_reconcile.rules.humanize import shown
from mailglass_reconcile.rules.unreachable import Server
from mailglass_reconcile.singleton.lock import LOCK_SECONDS, PREFIX, UNKNOWN, Holder, holder_of, key_of

LOST = "links are made, but not broadcast"

# A replica takes PUBLISH and tells nobody. For a user who may not ask for the role, the lock's check reports it.
_ROLE = """
local said = redis.pcall('INFO', 'replication')
if type(said) ~= 'string' then return '' end
return string.match(said, 'role:(%a+)') or ''
"""

_MAY_PUBLISH = """
if not redis.acl_check_cmd then return {'?'} end
local lacks = {}
for _, channel in ipairs(ARGV) do
  if not redis.acl_check_cmd('PUBLISH', channel, '') then lacks[#lacks + 1] = channel end
end
return lacks
"""

_MAY_LOCK = """
if not redis.acl_check_cmd then return {'?'} end
local lacks = {}
local function want(command, ...)
  if not redis.acl_check_cmd(command, KEYS[1], ...) then lacks[#lacks + 1] = command end
end
want('GET') want('PTTL') want('SET', '') want('EXPIRE', '1') want('DEL')
return lacks
"""

# What a stand-in for the lock is written to, for a second: a full or read-only Redis refuses it.
_TRY_LOCK = "return redis.call('SET', KEYS[1], 'doctor', 'EX', '1')"
PROBE = f"{PREFIX}doctor"

GRANT = {
    "publish": "ACL SETUSER <this user> +eval +publish '&mailglass:events:*'",
    "lock": f"ACL SETUSER <this user> +eval +get +pttl +set +expire +del '~{PREFIX}*'",
}


def checks() -> Iterator[Finding]:
    """Check the Redis of the broadcasts and of the lock."""
    reached = yield from _reachable("redis", runtime.get_redis, "MAILGLASS_REDIS_URL", LOST)
    if reached:
        yield from _broadcasts(reached)
        yield from _lock(reached)


def _reachable(check: str, client_of: Callable[[], Any], setting: str, lost: str) -> Generator[Finding, None, Any]:
    try:
        client = pubsub.fail_fast_client(client_of())
    except ConfigurationError as fault:
        yield error(check, str(fault), f"correct {setting}")
        return None
    server = pubsub.server_of(client, setting)
    try:
        role = _eval(client, _ROLE)
    except Exception as fault:  # whatever the client raises: a fault of the connection, or a right that is missing
        yield _unusable(check, fault, server, lost)
        return None
    if role == "slave":
        yield error(
            check,
            f"the {server.kind} at {server.place} is a replica: {lost}",
            f"let {setting} name the master; behind Sentinel, use configure(redis=…): docs/redis.md",
        )
        return None
    yield ok(check, f"connected to {server.kind} at {server.place}" + (", a master" if role else ""))
    return client


def _unusable(check: str, fault: Exception, server: Server, lost: str) -> Finding:
    if _denied(fault):
        return error(check, f"this user of {server.kind} at {server.place} may not use EVAL: {lost}", GRANT["publish"])
    said, remedy = unreachable.told_apart(fault, server)
    return error(check, f"cannot connect to {server.kind} at {server.place}: {said}; {lost}", remedy)


def _broadcasts(client: Any) -> Iterator[Finding]:
    channels = (events_channel("doctor"), events_channel("doctor", "doctor"))
    try:
        lacks = _eval(client, _MAY_PUBLISH, 0, *channels)
    except Exception as fault:  # as above
        yield _failed("redis_rights", fault)
        return
    if lacks == ["?"]:
        yield ok("redis_rights", "a server before Redis 7 cannot say what its user may do")
    elif lacks:
        yield error("redis_rights", f"this user may not PUBLISH on mailglass:events:*: {LOST}", GRANT["publish"])
    else:
        yield ok("redis_rights", "this user may publish on mailglass:events:*")


def _lock(client: Any) -> Iterator[Finding]:
    try:
        lacks = _eval(client, _MAY_LOCK, 1, PROBE)
        if lacks and lacks != ["?"]:
            yield warning(
                "lock_rights",
                f"this user may not use {', '.join(lacks)} on {PREFIX}*: sweeps run without their lock, perhaps twice",
                GRANT["lock"],
            )
            return
        _eval(client, _TRY_LOCK, 1, PROBE)
    except Exception as fault:  # as above
        yield _failed("lock_rights", fault)
        return
    yield ok("lock_rights", "the lock can be taken")


def _failed(check: str, fault: Exception) -> Finding:
    if _denied(fault):
        return warning(check, f"this user may not use EVAL on {PREFIX}*", GRANT["lock"])
    text = f"{type(fault).__name__} {fault}"
    known = next((said for word, said in _REFUSALS.items() if word in text), type(fault).__name__)
    return error(check, f"Redis refuses to write: {known}", "look at the server's log, memory and disk")


_REFUSALS = {
    "ReadOnlyError": "it is a replica",
    "OutOfMemoryError": "its memory is full (maxmemory)",
    "MISCONF": "it cannot save its data to disk",
    "NOREPLICAS": "it lacks the replicas that min-replicas-to-write asks for",
}


def _eval(client: Any, script: str, keys: int = 0, *arguments: str) -> Any:
    answer = within(TIMEOUT_SECONDS, lambda: client.eval(script, keys, *arguments))
    if isinstance(answer, list):
        return [one.decode() if isinstance(one, bytes) else one for one in answer]
    return answer.decode() if isinstance(answer, bytes) else answer


def _denied(fault: Exception) -> bool:
    return type(fault).__name__ == "NoPermissionError" or "NOPERM" in str(fault)


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
    heal = f"redis-cli DEL {key_of(None)} (on the Redis of the lock)"
    if now.task_id == UNKNOWN or left is None or left > LOCK_SECONDS:
        span = "without expiry" if left is None else f"for {left:.0f} s more"
        yield warning(
            "lock",
            f"the lock of full sweeps is held {span} by something other than our sweeps",
            f"nothing: the next sweep takes it over; or {heal}",
        )
        return
    held = (
        f"task {shown(now.task_id)} has the lock of full sweeps,"
        f" {'taken or renewed' if now.running else 'queued'} {LOCK_SECONDS - left:.0f} s ago, for {left:.0f} s more"
    )
    same = before is not None and before.task_id == now.task_id and before.running == now.running
    lost = same and now.task_id not in known_tasks and (now.running or queued == 0)
    if lost:
        yield warning(
            "lock",
            f"{held}; no worker that answers knows this task: perhaps its worker was killed."
            " Sweeps that are asked for until then are duplicates of it",
            f"nothing: it expires by itself; or now {heal}",
        )
    else:
        yield ok("lock", held)
