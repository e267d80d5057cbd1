"""A process that calls, as an application does: `record_send` and `record_webhook`, and the same by hand.

Each call has a Session and a commit of its own. Settings come from the environment. It prints its figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from bench import by_hand, proxy
from mailglass_reconcile import Sent, WebhookEvent, record_send, record_webhook

AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
TENANT = "acme"
KINDS = ("webhook", "send", "early")
"""A webhook whose delivery exists, a send, and a webhook that comes before its send."""

BLOCKS = 8
"""Ours and by hand take turns, so many calls divided by this at a time."""

Call = Callable[[Session, str], None]


def ours(kind: str) -> Call:
    """Return our call; it takes the message's id."""

    def send(session: Session, id_: str) -> None:
        one = Sent(recipient=f"{id_}@example.com", message_id=id_, occurred_at=AT)
        record_send(session, tenant_id=TENANT, provider="postmark", sent=[one], mailable="Mail")

    def webhook(session: Session, id_: str) -> None:
        event = WebhookEvent(
            type="delivered", occurred_at=AT, provider_event_id=id_, message_id=id_, recipient=f"{id_}@example.com"
        )
        record_webhook(session, tenant_id=TENANT, provider="postmark", events=[event])

    return send if kind == "send" else webhook


def hand_written(kind: str) -> Call:
    """Return the call by hand."""

    def send(session: Session, id_: str) -> None:
        by_hand.send(session, TENANT, [id_], [f"{id_}@example.com"], AT)

    def webhook(session: Session, id_: str) -> None:
        by_hand.webhook(session, TENANT, id_, id_, AT)

    return send if kind == "send" else webhook


class Spent(NamedTuple):
    """What a call took on average: milliseconds, milliseconds of this process's CPU, and threads started."""

    wall: float
    cpu: float
    threads: float


class Meter:
    """Measures blocks of calls."""

    def __init__(self) -> None:
        """Count the threads that start from now on."""
        self._started = 0
        start = threading.Thread.start

        def counted(thread: threading.Thread) -> None:
            self._started += 1
            start(thread)

        threading.Thread.start = counted  # type: ignore[method-assign]

    def block(self, run: Callable[[], object], calls: int) -> Spent:
        """Return what each of the *calls* calls took that *run* makes."""
        began, cpu, threads = time.perf_counter(), time.process_time(), self._started
        run()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        return Spent(1000 * wall / calls, 1000 * cpu / calls, (self._started - threads) / calls)


def medians(blocks: Iterable[Spent]) -> dict[str, float]:
    """Return the medians over blocks."""
    return Spent(*map(statistics.median, zip(*blocks, strict=True)))._asdict()


def in_turn(
    meter: Meter, sides: dict[str, Callable[[Sequence[str]], object]], ids: Sequence[str], warm: int
) -> dict[str, dict[str, float]]:
    """Warm each side up with the first *warm* ids, and let them take turns over the others."""
    for run in sides.values():
        run(ids[:warm])
    rest = ids[warm:]
    size = max(1, len(rest) // BLOCKS)
    blocks: dict[str, list[Spent]] = {side: [] for side in sides}
    for start in range(0, len(rest) - size + 1, size):
        for side, run in sides.items():
            blocks[side].append(meter.block(lambda run=run: run(rest[start : start + size]), size))  # noqa: B023 - called at once
    return {side: medians(found) for side, found in blocks.items()}


def engine_of(url: str, threads: int = 1) -> sa.Engine:
    """Return an application's engine, with a pool of *threads* connections."""
    return sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), pool_size=threads, max_overflow=0)


def calls(engine: sa.Engine, call: Call) -> Callable[[Iterable[str]], None]:
    """Return a function that makes *call* for each of some ids."""

    def run(ids: Iterable[str]) -> None:
        for id_ in ids:
            with Session(engine) as session:
                call(session, id_)
                session.commit()

    return run


def threaded(engine: sa.Engine, make: Callable[[str], Call], threads: int) -> Callable[[Sequence[str]], None]:
    """Return a function that makes the three calls in turn for each of some ids, in so many threads."""
    runs = {kind: calls(engine, make(kind)) for kind in KINDS}

    def one(id_: str) -> None:
        for kind, run in runs.items():
            run([f"{kind}-{id_}"])

    def run(ids: Sequence[str]) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, ids))

    return run


def awaited(url: str, call: Call) -> Callable[[Iterable[str]], Awaitable[None]]:
    """Return a coroutine function that makes *call* for each of some ids through asyncpg."""
    name = sa.make_url(url).set(drivername="postgresql+asyncpg")
    query = {key: value for key, value in name.query.items() if key != "sslmode"}
    engine = create_async_engine(name.set(query=query), pool_size=1, max_overflow=0)

    async def run(ids: Iterable[str]) -> None:
        for id_ in ids:
            async with AsyncSession(engine) as session:
                await session.run_sync(call, id_)
                await session.commit()

    return run


def one_thread(options: argparse.Namespace, meter: Meter) -> dict[str, Any]:
    """Make each kind of call in one thread, and count what goes through the proxy if there is one."""
    found: dict[str, Any] = {}
    for kind in options.kinds:
        sides = {"ours": calls(engine_of(options.url), ours(kind))}
        if options.by_hand:
            sides["by_hand"] = calls(engine_of(options.by_hand), hand_written(kind))
        ids = [f"{kind}-{number}" for number in range(options.calls)]
        if not options.control:
            found[kind] = in_turn(meter, sides, ids, options.warm)
            continue
        sides["ours"](ids[: options.warm])
        proxy.counts(options.control)
        spent = meter.block(lambda: sides["ours"](ids[options.warm :]), len(ids) - options.warm)  # noqa: B023 - called at once
        counted = proxy.counts(options.control)._asdict()
        found[kind] = {name: number / (len(ids) - options.warm) for name, number in counted.items()}
        found[kind]["threads"] = spent.threads
    return found


def many_threads(options: argparse.Namespace, meter: Meter) -> dict[str, Any]:
    """Make all kinds of calls in many threads."""
    sides = {
        "ours": threaded(engine_of(options.url, options.threads), ours, options.threads),
        "by_hand": threaded(engine_of(options.by_hand, options.threads), hand_written, options.threads),
    }
    return in_turn(meter, sides, [str(number) for number in range(options.calls)], options.warm)


def through_asyncpg(options: argparse.Namespace, meter: Meter) -> dict[str, Any]:
    """Make each kind of call in an event loop, on AsyncSession."""
    with asyncio.Runner() as runner:

        def settled(run: Callable[[Iterable[str]], Awaitable[None]]) -> Callable[[Iterable[str]], None]:
            def block(ids: Iterable[str]) -> None:
                async def both() -> None:
                    await run(ids)

                runner.run(both())

            return block

        found = {}
        for kind in options.kinds:
            sides = {
                "ours": settled(awaited(options.url, ours(kind))),
                "by_hand": settled(awaited(options.by_hand, hand_written(kind))),
            }
            found[kind] = in_turn(meter, sides, [f"{kind}-{n}" for n in range(options.calls)], options.warm)
    return found


def main() -> None:
    """Call, and print what it took."""
    parser = argparse.ArgumentParser(prog="python -m bench.calling")
    parser.add_argument("how", choices=["one-thread", "threads", "asyncpg"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--by-hand", metavar="URL")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--calls", type=int, required=True, help="warm ones included")
    parser.add_argument("--warm", type=int, default=15)
    parser.add_argument("--threads", type=int, default=24)
    parser.add_argument("--control", type=int, help="the proxy's port")
    options = parser.parse_args()
    how = {"one-thread": one_thread, "threads": many_threads, "asyncpg": through_asyncpg}[options.how]
    print(json.dumps(how(options, Meter())), flush=True)


if __name__ == "__main__":
    main()
