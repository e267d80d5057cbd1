"""A process that sweeps: once and ends, or, with `--serve`, once per line that it is given, as the line says.

A line is a batch size; the answer is a line of JSON. Settings come from the environment. With `SWEEPER_DIES_AT=N`
the process kills itself at the N-th of its fail points: around each statement, COMMIT and publishing; with
`SWEEPER_FOLLOWS` as well, it follows.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from itertools import count
from typing import Any

import psycopg
import sqlalchemy as sa

import mailglass_reconcile
from mailglass_reconcile.cli.follow import Follower
from mailglass_reconcile.pubsub import Message, Publisher


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


def main(serve: bool) -> None:
    """Sweep, and print each result."""
    if not serve:
        die_at(int(os.environ.get("SWEEPER_DIES_AT", "0")))
        if "SWEEPER_FOLLOWS" in os.environ:
            Follower(0.05, None, as_json=True).run()
        print(json.dumps(mailglass_reconcile.reconcile().as_dict()))
        return
    for line in sys.stdin:
        settings = mailglass_reconcile.Settings(batch_size=int(line))
        mailglass_reconcile.configure(settings=settings)
        print(json.dumps(mailglass_reconcile.reconcile().as_dict()), flush=True)


if __name__ == "__main__":
    main("--serve" in sys.argv)
