"""One trial: a load, a way of linking, a subscriber, the CPU of each process, and the checker at the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.machine import Machine
from bench.performance import cpu
from bench.performance.checker import check
from bench.performance.figures import percentile
from bench.performance.plan import Load
from bench.performance.subscriber import Subscriber
from mailglass_reconcile.testing.postgres import Postgres

PARTS = 2
"""Processes of the load generator."""

TELL_SECONDS = 30.0
"""When an event that was not announced counts as lost."""

Starter = Callable[[Machine, str], AbstractContextManager[dict[str, int]]]


class Way(NamedTuple):
    """A way of linking: who writes, what runs beside, and what p99 of the latency is wanted, in seconds."""

    name: str
    writer: str
    start: Starter
    wanted: float


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


class Laboratory(NamedTuple):
    """Where trials take place: the machine, the server, and the template of the database."""

    machine: Machine
    postgres: Postgres
    template: str

    def trial(self, way: Way, load: Load, beside: Callable[[str], object] | None = None) -> Outcome:
        """Run *load* in a new copy of the template with *way*, and return what was measured.

        Args:
            way: How the events are linked.
            load: What is written.
            beside: Called with the database's URL in another thread meanwhile.

        Raises:
            SystemExit: The load failed, or an event was lost or doubled.
        """
        url = self.machine.copy(self.template)
        with (
            way.start(self.machine, url) as pids,
            Subscriber(self.machine.redis_url, load.channels()) as subscriber,
            ThreadPoolExecutor() as pool,
        ):
            other = pool.submit(beside, url) if beside else None
            outcome = self._loaded(way, load, url, pids, subscriber)
            if other:
                other.result()
        check(url, f"{way.name} at {load.rate:.0f} events/s")
        return outcome

    def _loaded(self, way: Way, load: Load, url: str, pids: dict[str, int], subscriber: Subscriber) -> Outcome:
        children = [self._generator(way, load, url, part) for part in range(PARTS)]
        for child in children:
            if child.stdout.readline() != "ready\n":
                raise SystemExit(f"the load generator ended: exit code {child.wait()}")
        servers = {"Postgres": cpu.postgres_pid(self.postgres), "Redis": cpu.redis_pid(self.machine.redis_url)}
        generators = {f"generator {part + 1}": child.pid for part, child in enumerate(children)}
        start = time.monotonic() + 0.5
        writers = cpu.writers_seconds(self.machine.server)
        with cpu.Meter(pids | servers | generators) as meter:
            for child in children:
                child.stdin.write(f"{start}\n")
                child.stdin.flush()
            parts = [json.loads(child.stdout.readline()) for child in children]
            writers = cpu.writers_seconds(self.machine.server) - writers
        for child in children:
            child.communicate()  # it has waited, so that it and its sessions could be looked at
        meter.seconds["Postgres, writers"] = writers
        meter.seconds["Postgres, rest"] = meter.seconds.pop("Postgres") - writers
        return _outcome(parts, subscriber, meter)

    def _generator(self, way: Way, load: Load, url: str, part: int) -> subprocess.Popen[str]:
        options = ["--load", json.dumps(load._asdict()), "--part", str(part), "--parts", str(PARTS)]
        return subprocess.Popen(
            [sys.executable, "-m", "bench.performance.load", way.writer, *options],
            env=self.machine.environment(url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )


def _outcome(parts: list[dict[str, Any]], subscriber: Subscriber, meter: cpu.Meter) -> Outcome:
    if errors := [error for part in parts for error in part["errors"]]:
        raise SystemExit(f"the load generator failed: {errors[0]}")
    sends = {message: at for part in parts for message, at in part["sends"]}
    events = [event for part in parts for event in part["events"]]
    subscriber.wait_for([event_id for event_id, *_ in events], TELL_SECONDS)
    times = [committed for *_, committed in events]
    told = {event_id: subscriber.told[event_id][0] for event_id, *_ in events}
    return Outcome(
        latencies=[told[event_id] - max(committed, sends[message]) for event_id, message, _, committed in events],
        early=sum(written < sends[message] for _, message, written, _ in events) / len(events),
        rate=0.8 * len(events) / (percentile(times, 90) - percentile(times, 10)),
        late=max(part["late"] for part in parts),
        meter=meter,
    )
