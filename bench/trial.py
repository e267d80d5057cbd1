"""One trial: a load, a way of linking, a subscriber, the CPU of each process, and the checker at the end."""

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
from bench.load import Load
from bench.machine import Machine

PARTS = 2
"""Processes of the load generator."""

TOLD_SECONDS = 30.0
"""When an event that was not announced counts as lost."""


class Way(NamedTuple):
    """A way of linking: who writes, what runs meanwhile, and what p99 of the latency is wanted, in seconds."""

    name: str
    writer: str
    wanted: float
    command: tuple[str, ...] = ()

    @contextmanager
    def running(self, machine: Machine, url: str) -> Iterator[dict[str, int]]:
        """Run what this way needs while the block runs, and yield its process id by name."""
        if not self.command:
            yield {}
            return
        with tempfile.TemporaryDirectory(prefix="mailglass-beat-") as directory:
            command = [each.format(directory=directory) for each in self.command]
            with machine.running(url, "-m", *command) as pid:
                yield {self.name: pid}


RECORD = Way("record_send, record_webhook", "record", 0.1)
FOLLOW = Way("follow, every 0.1 s", "insert", 0.25, ("mailglass_reconcile", "follow", "--interval", "0.1"))
RECENT = Way(
    "recent=1.0",
    "insert",
    1.5,
    (
        *("celery", "-A", "bench.celery_app", "worker", "-B", "-c", "1", "--loglevel", "WARNING"),
        *("-s", "{directory}/schedule"),
    ),
)


@dataclass(slots=True)
class Outcome:
    """What a trial measured; seconds, and the load in events a second.

    Attributes:
        latencies: From the later of the two commits to the subscriber, for each event.
        early: The share of events that were written before their send had committed.
        rate: How many events a second were written, without the first tenth and the last.
        late: How late the generator began a transaction, 99th percentile.
        meter: CPU seconds by process, while the load ran.
    """

    latencies: list[float]
    early: float
    rate: float
    late: float
    meter: cpu.Meter

    def percentile(self, percent: float) -> float:
        """Return a percentile of the latencies."""
        return percentile(self.latencies, percent)


def trial(
    machine: Machine, template: str, way: Way, load: Load, meanwhile: Callable[[str], object] | None = None
) -> Outcome:
    """Run *load* in a new copy of *template* with *way*, and return what was measured.

    Args:
        machine: The servers.
        template: The database to begin with.
        way: How the events are linked.
        load: What is written.
        meanwhile: Called with the database's URL in another thread while the load runs.

    Raises:
        SystemExit: The load failed, or an event was lost or doubled.
    """
    url = machine.copy(template)
    with way.running(machine, url) as pids, Subscriber(machine.redis_url) as subscriber, ThreadPoolExecutor() as pool:
        other = pool.submit(meanwhile, url) if meanwhile else None
        outcome = _loaded(machine, way, load, url, pids, subscriber)
        if other:
            other.result()
    check(url, f"{way.name} at {load.rate:.0f} events/s")
    return outcome


class Subscriber:
    """Listens to all tenants while the block runs; `told` has the times of the messages by event id."""

    def __init__(self, redis_url: str) -> None:
        """Subscribe to every tenant's channel."""
        self.told: dict[str, list[float]] = {}
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
        """Wait until each of *event_ids* was announced exactly once.

        Raises:
            SystemExit: One was not announced in time, or announced twice.
        """
        deadline = time.monotonic() + TOLD_SECONDS
        while missing := sum(event_id not in self.told for event_id in event_ids):
            if time.monotonic() > deadline:
                raise SystemExit(f"{missing} of {len(event_ids)} events were never announced; no figure of this counts")
            time.sleep(0.05)
        if twice := sum(len(self.told[event_id]) > 1 for event_id in event_ids):
            raise SystemExit(f"{twice} events were announced twice; no figure of this run counts")

    def _listen(self) -> None:
        while not self._ends.is_set():
            message = self._pubsub.get_message(timeout=0.2)
            # Each event is announced on its tenant's channel and on its delivery's.
            if message is not None and message["channel"].count(b":") == 2:
                told, meta = time.monotonic(), json.loads(message["data"])["meta"]
                self.told.setdefault(meta.get("reconciled_from_event_id", meta["event_id"]), []).append(told)


def _loaded(machine: Machine, way: Way, load: Load, url: str, pids: dict[str, int], subscriber: Subscriber) -> Outcome:
    children = [_generator(machine, way, load, url, part) for part in range(PARTS)]
    for child in children:
        if child.stdout.readline() != "ready\n":
            raise SystemExit(f"the load generator ended: exit code {child.wait()}")
    generators = {f"generator {part + 1}": child.pid for part, child in enumerate(children)}
    start = time.monotonic() + 0.5
    writers = cpu.writers_seconds(machine.server)
    with cpu.Meter(pids | cpu.servers(machine) | generators) as meter:
        for child in children:
            child.stdin.write(f"{start}\n")
            child.stdin.flush()
        parts = [json.loads(child.stdout.readline()) for child in children]
        writers = cpu.writers_seconds(machine.server) - writers
    for child in children:
        child.communicate()  # it has waited, so that it and its sessions could be looked at
    meter.seconds["Postgres, writers"] = writers
    meter.seconds["Postgres, rest"] = meter.seconds.pop("Postgres") - writers
    return _outcome(parts, subscriber, meter)


def _generator(machine: Machine, way: Way, load: Load, url: str, part: int) -> Any:
    options = ["--load", json.dumps(load._asdict()), "--part", str(part), "--parts", str(PARTS)]
    command, pipe = [sys.executable, "-m", "bench.load", way.writer, *options], subprocess.PIPE
    return subprocess.Popen(command, env=machine.environment(url), stdin=pipe, stdout=pipe, text=True)


def _outcome(parts: list[dict[str, Any]], subscriber: Subscriber, meter: cpu.Meter) -> Outcome:
    if errors := [error for part in parts for error in part["errors"]]:
        raise SystemExit(f"the load generator failed: {errors[0]}")
    sends = {message: at for part in parts for message, at in part["sends"]}
    events = [event for part in parts for event in part["events"]]
    subscriber.wait_for([event_id for event_id, *_ in events])
    times = [committed for *_, committed in events]
    return Outcome(
        latencies=[subscriber.told[id_][0] - max(committed, sends[message]) for id_, message, _, committed in events],
        early=sum(written < sends[message] for _, message, written, _ in events) / len(events),
        rate=0.8 * len(events) / (percentile(times, 90) - percentile(times, 10)),
        late=max(part["late"] for part in parts),
        meter=meter,
    )
