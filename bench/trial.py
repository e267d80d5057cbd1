"""One trial: a load, a method of linking, a subscriber, the CPU of each process, and the checker at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis

from bench import cpu
from bench.checker import check
from bench.figures import percentile
from bench.load_generator import Load
from bench.testbed import Testbed

PARTS = 2
"""Processes of the load generator."""

PUBLISH_TIMEOUT_SECONDS = 30.0
"""After this time an event that was not published counts as lost."""


class LinkMethod(NamedTuple):
    """A method of linking: the kind of writer, the command that runs meanwhile, and the target of the p99 latency."""

    name: str
    writer: str
    target_seconds: float
    command: tuple[str, ...] = ()

    @contextmanager
    def running(self, testbed: Testbed, url: str) -> Iterator[dict[str, int]]:
        """Run the method's command, if it has one, while the block runs; yield the process id by the method's name."""
        if not self.command:
            yield {}
            return
        with tempfile.TemporaryDirectory(prefix="mailglass-beat-") as directory:
            command = [argument.format(directory=directory) for argument in self.command]
            with testbed.running(url, "-m", *command) as pid:
                yield {self.name: pid}


RECORD = LinkMethod("record_send, record_webhook", "record", 0.1)
FOLLOW = LinkMethod("follow, every 0.1 s", "insert", 0.25, ("mailglass_reconcile", "follow", "--interval", "0.1"))
RECENT = LinkMethod(
    "recent=1.0",
    "insert",
    1.5,
    (
        *("celery", "-A", "bench.celery_app", "worker", "-B", "-c", "1", "--loglevel", "WARNING"),
        *("-s", "{directory}/schedule"),
    ),
)


@dataclass(slots=True)
class TrialResult:
    """The result of a trial; times are in seconds, rates in events a second.

    Attributes:
        latencies: From the later of the two commits to the subscriber, for each event.
        early_share: The share of events that were written before their send had committed.
        rate: Events a second that were written, without the first tenth and the last.
        delay: The 99th percentile of the delay with which the generator began a transaction.
        meter: CPU seconds by process, while the load ran.
    """

    latencies: list[float]
    early_share: float
    rate: float
    delay: float
    meter: cpu.Meter

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies."""
        return percentile(self.latencies, percent)


def run_trial(
    testbed: Testbed, template: str, method: LinkMethod, load: Load, meanwhile: Callable[[str], object] | None = None
) -> TrialResult:
    """Run *load* in a new copy of *template* with *method*, and return the result.

    Args:
        testbed: The servers.
        template: The database to copy.
        method: How the events are linked.
        load: The sends and events to write.
        meanwhile: Called with the database's URL in another thread while the load runs.

    Raises:
        SystemExit: The load failed, or an event was lost or doubled.
    """
    url = testbed.copy(template)
    with (
        method.running(testbed, url) as pids,
        Subscriber(testbed.redis_url) as subscriber,
        ThreadPoolExecutor() as pool,
    ):
        background = pool.submit(meanwhile, url) if meanwhile else None
        result = _run_load(testbed, method, load, url, pids, subscriber)
        if background:
            background.result()
    check(url, f"{method.name} at {load.rate:.0f} events/s")
    return result


class Subscriber:
    """Listens to all tenants while the block runs; `published_at` has the times of the messages by event id."""

    def __init__(self, redis_url: str) -> None:
        """Subscribe to every tenant's channel."""
        self.published_at: dict[str, list[float]] = {}
        self._pubsub = redis.Redis.from_url(redis_url).pubsub(ignore_subscribe_messages=True)
        self._pubsub.psubscribe("mailglass:events:*")
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Subscriber:
        """Begin to listen."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop listening."""
        self._ends.set()
        self._thread.join()
        self._pubsub.close()

    def wait_for(self, event_ids: Collection[str]) -> None:
        """Wait until a message about each of *event_ids* has arrived exactly once.

        Raises:
            SystemExit: An event was not published in time, or was published twice.
        """
        deadline = time.monotonic() + PUBLISH_TIMEOUT_SECONDS
        while missing_count := sum(event_id not in self.published_at for event_id in event_ids):
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"{missing_count} of {len(event_ids)} events were never announced; no figure of this counts"
                )
            time.sleep(0.05)
        if doubled := sum(len(self.published_at[event_id]) > 1 for event_id in event_ids):
            raise SystemExit(f"{doubled} events were published twice; the figures of this run are void")

    def _listen(self) -> None:
        while not self._ends.is_set():
            message = self._pubsub.get_message(timeout=0.2)
            # Each event is published on its tenant's channel and on its delivery's.
            if message is not None and message["channel"].count(b":") == 2:
                received_at, meta = time.monotonic(), json.loads(message["data"])["meta"]
                self.published_at.setdefault(meta.get("reconciled_from_event_id", meta["event_id"]), []).append(
                    received_at
                )


def _run_load(
    testbed: Testbed, method: LinkMethod, load: Load, url: str, pids: dict[str, int], subscriber: Subscriber
) -> TrialResult:
    children = [_start_generator(testbed, method, load, url, part) for part in range(PARTS)]
    for child in children:
        if child.stdout.readline() != "ready\n":
            raise SystemExit(f"the load generator ended: exit code {child.wait()}")
    generators = {f"generator {part + 1}": child.pid for part, child in enumerate(children)}
    start = time.monotonic() + 0.5
    writers = cpu.writers_seconds(testbed.server)
    with cpu.Meter(pids | cpu.servers(testbed) | generators) as meter:
        for child in children:
            child.stdin.write(f"{start}\n")
            child.stdin.flush()
        parts = [json.loads(child.stdout.readline()) for child in children]
        writers = cpu.writers_seconds(testbed.server) - writers
    for child in children:
        child.communicate()  # it waits until its CPU and that of its sessions has been read
    meter.seconds["Postgres, writers"] = writers
    meter.seconds["Postgres, rest"] = meter.seconds.pop("Postgres") - writers
    return _collect_result(parts, subscriber, meter)


def _start_generator(testbed: Testbed, method: LinkMethod, load: Load, url: str, part: int) -> Any:
    options = ["--load", json.dumps(load._asdict()), "--part", str(part), "--parts", str(PARTS)]
    command, pipe = [sys.executable, "-m", "bench.load_generator", method.writer, *options], subprocess.PIPE
    return subprocess.Popen(command, env=testbed.environment(url), stdin=pipe, stdout=pipe, text=True)


def _collect_result(parts: list[dict[str, Any]], subscriber: Subscriber, meter: cpu.Meter) -> TrialResult:
    if errors := [error for part in parts for error in part["errors"]]:
        raise SystemExit(f"the load generator failed: {errors[0]}")
    sends = {message: at for part in parts for message, at in part["sends"]}
    events = [event for part in parts for event in part["events"]]
    subscriber.wait_for([event_id for event_id, *_ in events])
    times = [committed for *_, committed in events]
    return TrialResult(
        latencies=[
            subscriber.published_at[id_][0] - max(committed, sends[message]) for id_, message, _, committed in events
        ],
        early_share=sum(written < sends[message] for _, message, written, _ in events) / len(events),
        rate=0.8 * len(events) / (percentile(times, 90) - percentile(times, 10)),
        delay=max(part["late"] for part in parts),
        meter=meter,
    )
