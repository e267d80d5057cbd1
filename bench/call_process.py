"""A process that calls `record_send` and `record_webhook` as an application does, and the hand-written baseline.

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
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from bench import hand_written, proxy
from mailglass_reconcile import Sent, WebhookEvent, record_send, record_webhook

AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
TENANT = "acme"
KINDS = ("webhook", "send", "early")
"""A webhook whose delivery exists, a send, and a webhook that comes before its send."""

BLOCKS = 8
"""Blocks of calls: the package and the baseline take turns."""

Call = Callable[[Session, str], None]


def package_call(kind: str) -> Call:
    """Return a function that makes one call of this package about a message id."""

    def send(session: Session, id_: str) -> None:
        sent = [Sent(recipient=f"{id_}@example.com", message_id=id_, occurred_at=AT)]
        record_send(session, tenant_id=TENANT, provider="postmark", sent=sent, mailable="Mail")

    def webhook(session: Session, id_: str) -> None:
        event = WebhookEvent(
            type="delivered", occurred_at=AT, provider_event_id=id_, message_id=id_, recipient=f"{id_}@example.com"
        )
        record_webhook(session, tenant_id=TENANT, provider="postmark", events=[event])

    return send if kind == "send" else webhook


def baseline_call(kind: str) -> Call:
    """Return a function that does the same with hand-written SQL."""

    def send(session: Session, id_: str) -> None:
        hand_written.send(session, TENANT, [id_], [f"{id_}@example.com"], AT)

    def webhook(session: Session, id_: str) -> None:
        hand_written.webhook(session, TENANT, id_, id_, AT)

    return send if kind == "send" else webhook


class CallCost(NamedTuple):
    """The average cost of a call: wall and CPU milliseconds of this process, and threads started."""

    wall: float
    cpu: float
    threads: float


class CallMeter:
    """Measures the cost of blocks of calls."""

    def __init__(self) -> None:
        """Count the threads that start from now on."""
        self._started = 0
        start = threading.Thread.start

        def count_start(thread: threading.Thread) -> None:
            self._started += 1
            start(thread)

        threading.Thread.start = count_start  # type: ignore[method-assign]

    def block(self, run: Callable[[], object], calls: int) -> CallCost:
        """Call *run*, which makes so many *calls*, and return the average cost of one."""
        began, cpu, threads = time.perf_counter(), time.process_time(), self._started
        run()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        return CallCost(1000 * wall / calls, 1000 * cpu / calls, (self._started - threads) / calls)


def medians(costs: Iterable[CallCost]) -> dict[str, float]:
    """Return the median costs of several blocks."""
    return CallCost(*map(statistics.median, zip(*costs, strict=True)))._asdict()


def measure_in_turn(
    meter: CallMeter, sides: dict[str, Callable[[Sequence[str]], object]], ids: Sequence[str], warm: int
) -> dict[str, dict[str, float]]:
    """Warm up with the first *warm* ids; then measure blocks of the other ids, the sides in turn."""
    for run in sides.values():
        run(ids[:warm])
    measured_ids = ids[warm:]
    size = max(1, len(measured_ids) // BLOCKS)
    blocks: dict[str, list[CallCost]] = {side: [] for side in sides}
    for start in range(0, len(measured_ids) - size + 1, size):
        for side, run in sides.items():
            blocks[side].append(meter.block(lambda run=run: run(measured_ids[start : start + size]), size))  # noqa: B023 - called at once
    return {side: medians(result) for side, result in blocks.items()}


def engine_of(url: str, threads: int = 1) -> sa.Engine:
    """Return an application's engine, with a pool of *threads* connections."""
    return sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), pool_size=threads, max_overflow=0)


def repeat_call(engine: sa.Engine, call: Call) -> Callable[[Iterable[str]], None]:
    """Return a function that makes *call* for each id, with a Session and a commit of its own."""

    def run(ids: Iterable[str]) -> None:
        for id_ in ids:
            with Session(engine) as session:
                call(session, id_)
                session.commit()

    return run


def repeat_threaded(engine: sa.Engine, make: Callable[[str], Call], threads: int) -> Callable[[Sequence[str]], None]:
    """Return a function that makes all kinds of calls for each id, in so many threads."""
    runs = {kind: repeat_call(engine, make(kind)) for kind in KINDS}

    def call_each_kind(id_: str) -> None:
        for kind, run in runs.items():
            run([f"{kind}-{id_}"])

    def run(ids: Sequence[str]) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(call_each_kind, ids))

    return run


def repeat_call_async(url: str, call: Call) -> Callable[[Iterable[str]], Coroutine[Any, Any, None]]:
    """Return a coroutine function that makes *call* for each id through asyncpg."""
    name = sa.make_url(url).set(drivername="postgresql+asyncpg")
    query = {key: value for key, value in name.query.items() if key != "sslmode"}
    engine = create_async_engine(name.set(query=query), pool_size=1, max_overflow=0)

    async def run(ids: Iterable[str]) -> None:
        for id_ in ids:
            async with AsyncSession(engine) as session:
                await session.run_sync(call, id_)
                await session.commit()

    return run


def measure_one_thread(options: argparse.Namespace, meter: CallMeter) -> dict[str, Any]:
    """Measure each kind of call in one thread; with a proxy, count its round trips instead."""
    result: dict[str, Any] = {}
    for kind in options.kinds:
        sides = {"package": repeat_call(engine_of(options.url), package_call(kind))}
        if options.baseline:
            sides["baseline"] = repeat_call(engine_of(options.baseline), baseline_call(kind))
        ids = [f"{kind}-{number}" for number in range(options.calls)]
        if not options.control:
            result[kind] = measure_in_turn(meter, sides, ids, options.warm)
            continue
        sides["package"](ids[: options.warm])
        proxy.counts(options.control)
        spent = meter.block(lambda: sides["package"](ids[options.warm :]), len(ids) - options.warm)  # noqa: B023 - called at once
        counts = proxy.counts(options.control)._asdict()
        result[kind] = {name: number / (len(ids) - options.warm) for name, number in counts.items()}
        result[kind]["threads"] = spent.threads
    return result


def measure_threads(options: argparse.Namespace, meter: CallMeter) -> dict[str, Any]:
    """Measure all kinds of calls in many threads."""
    sides = {
        "package": repeat_threaded(engine_of(options.url, options.threads), package_call, options.threads),
        "baseline": repeat_threaded(engine_of(options.baseline, options.threads), baseline_call, options.threads),
    }
    return measure_in_turn(meter, sides, [str(number) for number in range(options.calls)], options.warm)


def measure_asyncpg(options: argparse.Namespace, meter: CallMeter) -> dict[str, Any]:
    """Measure each kind of call in an event loop, on AsyncSession."""
    with asyncio.Runner() as runner:

        def run_in_loop(run: Callable[[Iterable[str]], Coroutine[Any, Any, None]]) -> Callable[[Iterable[str]], None]:
            return lambda ids: runner.run(run(ids))

        result = {}
        for kind in options.kinds:
            sides = {
                "package": run_in_loop(repeat_call_async(options.url, package_call(kind))),
                "baseline": run_in_loop(repeat_call_async(options.baseline, baseline_call(kind))),
            }
            result[kind] = measure_in_turn(meter, sides, [f"{kind}-{n}" for n in range(options.calls)], options.warm)
    return result


def main() -> None:
    """Measure the calls, and print their costs."""
    parser = argparse.ArgumentParser(prog="python -m bench.call_process")
    parser.add_argument("how", choices=["one-thread", "threads", "asyncpg"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--baseline", metavar="URL")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--calls", type=int, required=True, help="number of calls, warm-up included")
    parser.add_argument("--warm", type=int, default=15)
    parser.add_argument("--threads", type=int, default=24)
    parser.add_argument("--control", type=int, help="the proxy's port")
    options = parser.parse_args()
    measure = {"one-thread": measure_one_thread, "threads": measure_threads, "asyncpg": measure_asyncpg}[options.how]
    print(json.dumps(measure(options, CallMeter())), flush=True)


if __name__ == "__main__":
    main()
