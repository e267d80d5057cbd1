"""The lock of full sweeps: who has it, since when, for how much longer, and whether anybody knows the holder."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mailglass_reconcile import runtime
from mailglass_reconcile.ops.doctor.finding import Finding, ok, warning
from mailglass_reconcile.rules.wording import shown
from mailglass_reconcile.singleton.lock import LOCK_SECONDS, UNKNOWN, Holder, holder_of, key_of


def holder() -> Holder | None:
    """Return who has the lock of full sweeps, or None.

    Raises:
        ConfigurationError: There is no database to tell deployments apart by.
        Exception: Redis refuses, or does not answer.
    """
    return holder_of(runtime.get_lock_redis(), key_of(None))


def lock(before: Holder | None, known_tasks: Collection[str], queued: int | None) -> Iterator[Finding]:
    """Say who has the lock of full sweeps, and whether that is a task that somebody runs.

    Args:
        before: Who had it before the workers were asked what they run.
        known_tasks: What they run, or have taken from a queue.
        queued: Messages in the queue of sweeps; None if it cannot be counted.
    """
    now = holder()
    if now is None:
        yield ok("lock", "nobody has the lock of full sweeps")
        return
    left = now.seconds_left
    heal = f"redis-cli DEL {key_of(None)} (on the Redis of the lock)"
    if now.task_id == UNKNOWN or left is None or left > LOCK_SECONDS:
        span = "without expiry" if left is None else f"for {left:.0f} s more"
        yield warning(
            "lock",
            f"the lock of full sweeps is held {span} by something that is no sweep of ours",
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
            f"nothing: it lapses by itself; or at once {heal}",
        )
    else:
        yield ok("lock", held)
