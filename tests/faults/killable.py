"""`python -m faults.killable WORK`: a process that forks a child for each line of its input, which does the work.

A line is a JSON object of environment variables. With `DIES_AT=N` the child kills itself at the N-th of its fail
points, from 1: before and after each statement and each publishing, and before each COMMIT. What the child prints is
followed by a line with `exit` and its exit code, or minus the signal's number. With a line as second argument, there is
no child. Rows are deleted and erased in batches of two.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import psycopg
import sqlalchemy as sa

import mailglass_reconcile
from mailglass_reconcile import runtime
from mailglass_reconcile.cli.follow import Follower
from mailglass_reconcile.pubsub import Message, Publisher
from mailglass_reconcile.record import erasure
from mailglass_reconcile.store.limits import Limits

ADDRESS = "ada@example.com"
"""Of the person who is erased."""

BATCHES = {"batch_rows": 2, "retention_rows": 2}
"""The limits of the work."""


def sweep() -> None:
    """Sweep, and print the result."""
    print(json.dumps(mailglass_reconcile.reconcile().as_dict()))


def prune() -> None:
    """Prune; a step that fails is an error."""
    failures = mailglass_reconcile.prune().failures
    assert not failures, failures


def erase() -> None:
    """Erase the person, in several transactions."""
    erasure.erase_with(runtime.database(), erasure.validate_erasure(ADDRESS))


WORK: dict[str, Callable[[], object]] = {
    "sweep": sweep,
    "follow": lambda: Follower(0.05, None, as_json=True).run(),
    "dispatch": mailglass_reconcile.dispatch,
    "prune": prune,
    "erase": erase,
}


def die_at(number: int) -> None:
    """Kill this process at the *number*-th of its fail points, from 1."""
    passed = count(1)
    publish, execute = Publisher.publish, psycopg.Cursor.execute

    def fail_point(*unused: object) -> None:
        if next(passed) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def published(publisher: Publisher, messages: Sequence[Message]) -> None:
        fail_point()
        publish(publisher, messages)
        publisher.wait()
        fail_point()

    def executed(cursor: psycopg.Cursor[Any], *arguments: Any, **options: Any) -> Any:
        fail_point()
        result = execute(cursor, *arguments, **options)
        fail_point()
        return result

    psycopg.Cursor.execute = executed  # type: ignore[method-assign]
    sa.event.listen(sa.Engine, "commit", fail_point)
    Publisher.publish = published  # type: ignore[method-assign]


def work(name: str, line: str) -> None:
    """Do the work in an environment with the variables of *line*."""
    os.environ.update(json.loads(line))
    die_at(int(os.environ.get("DIES_AT", "0")))
    WORK[name]()
    sys.stdout.flush()


def main(name: str, *lines: str) -> None:
    """Do the work for each line of the arguments here, or for each line of the input in a child."""
    runtime.set_limits(Limits(**BATCHES))
    runtime.load_imports()
    for line in lines:
        work(name, line)
    for line in () if lines else sys.stdin:
        child = os.fork()
        if child == 0:
            work(name, line)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print("exit", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
