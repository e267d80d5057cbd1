"""Dispatchers are killed, by their handlers and at each of their fail points: each effect is there exactly once."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

import factories
import mailglass_reconcile
from conftest import Database
from faults.runs import FULL
from handling import effects, make_due, states
from mailglass_reconcile.hooks import dispatcher

pytestmark = pytest.mark.slow

Record = Callable[[str, object], None]
EVENTS = 1_000 if FULL else 100
KILLS = 6
"""How many times handlers kill their process, on average."""


def linked(db: Database, number: int) -> None:
    """Let a sweep link *number* new orphans, one to each delivery."""
    names = [f"m-{n}" for n in range(number)]
    db.run("UPDATE mailglass_deliveries SET provider_message_id = NULL WHERE provider_message_id IS NOT NULL")
    factories.insert(db, deliveries=[factories.delivery_row(name) for name in names])
    factories.insert(db, events=[factories.orphan_row(factories.postmark(name), type="bounced") for name in names])
    assert mailglass_reconcile.reconcile().linked == number


@contextmanager
def forking(db: Any, redis_url: str, **more: str) -> Iterator[Callable[[int], Callable[[], int]]]:
    """Run a process that forks dispatchers; call what is yielded to begin one, and its answer to wait for it."""
    environment = {
        **db.environment(redis_url),
        **{"PYTHONPATH": "tests:.", "MAILGLASS_IMPORTS": "faults.handled", "MAILGLASS_HOOK_TYPES": "*"},
        **more,
    }
    command = [sys.executable, "-m", "faults.dispatcher"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as process:

        def begin(fail_point: int) -> Callable[[], int]:
            process.stdin.write(f"{fail_point}\n")
            process.stdin.flush()
            return lambda: int(process.stdout.readline())

        yield begin
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="on the engine's", marks=pytest.mark.guard),
        pytest.param({"HANDLED_DJANGO": "1"}, id="on Django's connection"),
    ],
)
def test_handlers_that_fail_and_kill_their_process_act_exactly_once(
    hooked: Database, redis_url: str, record_property: Record, more: dict[str, str]
) -> None:
    """Two dispatchers side by side, started again until nothing waits; what is dead is tried again."""
    linked(hooked, EVENTS)
    killed = 0
    more = {**more, "HANDLED_KILLS": str(KILLS / (1.4 * EVENTS))}
    with forking(hooked, redis_url, **more) as one, forking(hooked, redis_url, **more) as two:
        while states(hooked) != {"dispatched": EVENTS}:
            killed += sum(wait() != 0 for wait in (one(0), two(0)))
            dispatcher.retry(hooked.database)
            make_due(hooked)
    handlers = ("steady", "flaky", *(["orm"] if len(more) > 1 else []))
    assert effects(hooked) == dict.fromkeys(handlers, EVENTS)
    record_property("fault", ("dispatchers killed by their handlers", killed))


@pytest.mark.parametrize("tried", [False, True], ids=["in a batch", "alone"])
def test_a_dispatcher_killed_at_any_fail_point_loses_and_doubles_nothing(
    hooked: Database, redis_url: str, record_property: Record, tried: bool
) -> None:
    """Three events, one of which fails first; another dispatcher does the rest, and each effect is there once."""
    kills = total = 0
    with forking(hooked, redis_url) as begin:
        for number in count(1, 1 if FULL else 20):
            linked(hooked, 3)
            total += 3
            if tried:
                assert begin(0)() == 0
                make_due(hooked)
            hit = begin(number)() == -9
            kills += hit
            hooked.wait_until_alone()
            while states(hooked) != {"dispatched": total}:
                make_due(hooked)
                assert begin(0)() == 0
            assert effects(hooked) == {"steady": total, "flaky": total}
            if not hit:
                break
    assert kills >= (60 if FULL else 3)
    record_property("fault", ("dispatchers killed at a fail point", kills))
