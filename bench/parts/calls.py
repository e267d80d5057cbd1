"""Single calls, each with its commit, against the same work written by hand; then many rows in one call."""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from sqlalchemy.orm import Session

from bench import by_hand, calling, proxy
from bench.figures import Part
from bench.filling import fill
from bench.machine import Machine, vacuum
from mailglass_reconcile import Sent, Settings, WebhookEvent, configure, record_send, record_webhook

NAMES = {"webhook": "a webhook whose delivery exists", "send": "a send", "early": "a webhook that is too early"}
RATIO, CPU_RATIO = 1.6, 2.0
ROUND_TRIPS = {"webhook": 2, "send": 1, "early": 2}

WARM, CALLS, DELAYED_CALLS, THREADED_CALLS = 15, 800, 80, 1_200
THREADS = 24
DELAY = 0.005
SILENT_CALLS = 100
BATCH = 500
RECIPIENTS = 1_000
ROUNDS = 5

DELIVERIES = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider,
       provider_message_id, last_event_type, last_event_at, dispatched_at, inserted_at, updated_at)
SELECT gen_random_uuid(), 'acme', 'Mail', 'transactional', kind || '-' || n || '@example.com', 'example.com', provider,
       kind || '-' || n, 'dispatched', '2026-03-01 11:00', '2026-03-01 11:00', now(), now()
  FROM (VALUES ('webhook', 'postmark'), ('batch', 'sendgrid')) AS k (kind, provider), generate_series(0, %s) AS n
"""
WIDE = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
       last_event_type, last_event_at, inserted_at, updated_at)
SELECT gen_random_uuid(), 'acme', 'News', 'bulk', 'u' || n || '@example.com', 'example.com', 'wide', 'dispatched',
       now(), now(), now() FROM generate_series(1, %s) AS n
"""


def measure(machine: Machine) -> Part:
    """Measure single calls in every way that an application makes them, and calls with many rows."""
    part = Part()
    for source, name in (("migrated", "ours"), ("bare", "hand")):
        url = machine.copy(source, name)
        fill(url, deliveries=machine.scaled(100_000))
        with psycopg.connect(url) as connection:
            connection.execute(DELIVERIES, [max(WARM + machine.scaled(THREADED_CALLS), 14 * machine.scaled(BATCH))])
        vacuum(url)
    _one_thread(machine, part)
    _delayed(machine, part)
    _threads(machine, part)
    _asyncpg(machine, part)
    _silent_redis(machine, part)
    _django(machine, part)
    _many_rows(machine, part)
    machine.drop("ours", "hand", "run", "run by hand")
    return part


def _copies(machine: Machine) -> tuple[str, str]:
    return machine.copy("ours"), machine.copy("hand", "run by hand")


def _calling(machine: Machine, how: str, url: str, calls: int, *options: str, **settings: str) -> dict[str, Any]:
    """Call in a process of its own, *calls* times after warming up, and return what it printed."""
    warm = machine.scaled(WARM)
    command = ("-m", "bench.calling", how, "--url", url, "--warm", str(warm), "--calls", str(warm + calls), *options)
    found: dict[str, Any] = json.loads(machine.run_to_its_end(url, *command, **settings))
    return found


def _one_thread(machine: Machine, part: Part) -> None:
    ours, hand = _copies(machine)
    found = _calling(machine, "one-thread", ours, machine.scaled(CALLS), "--by-hand", hand)
    _ratios(part, found, "{}")
    for kind, name in NAMES.items():
        ours, hand = found[kind]["ours"]["cpu"], found[kind]["by_hand"]["cpu"]
        part.compare(f"CPU of Python, with the background thread's: {name}", ours, hand, "ms", CPU_RATIO)


def _ratios(part: Part, found: dict[str, Any], name: str) -> None:
    for kind, sides in found.items():
        ours, hand = sides["ours"]["wall"], sides["by_hand"]["wall"]
        part.compare(name.format(NAMES[kind]), ours, hand, "ms", RATIO)


def _delayed(machine: Machine, part: Part) -> None:
    """Call through the proxy: with 5 ms for each round trip, and counting them."""
    ours, hand = _copies(machine)
    with proxy.in_front_of(machine.server, DELAY) as through:
        urls = through.url(ours), "--by-hand", through.url(hand)
        calls = machine.scaled(DELAYED_CALLS)
        _ratios(part, _calling(machine, "one-thread", urls[0], calls, *urls[1:]), "5 ms per round trip: {}")
    ours, hand = _copies(machine)
    with proxy.in_front_of(machine.server) as through:
        options = "--control", str(through.control)
        url, calls = through.url(ours), machine.scaled(CALLS)
        found = _calling(machine, "one-thread", url, calls, *options)
        with psycopg.connect(machine.copy("ours"), autocommit=True) as connection:
            connection.execute("INSERT INTO mailglass_handled_types VALUES ('delivered', 'suppress', now())")
        handled = _calling(machine, "one-thread", url, calls, *options, "--kinds", "webhook")
    for kind, counted in found.items():
        _round_trips(part, NAMES[kind], counted, ROUND_TRIPS[kind])
    _round_trips(part, f"{NAMES['webhook']}, with a handler", handled["webhook"], ROUND_TRIPS["webhook"])
    for name in ("connections", "threads"):
        verb = "opened" if name == "connections" else "started"
        most = max(counted[name] for counted in found.values())
        part.add(f"{name} {verb} per call, the most of the three", most, "", 0)


def _round_trips(part: Part, name: str, counted: dict[str, float], target: int) -> None:
    note = f"and {counted['begins_and_ends']:.1f} for BEGIN and COMMIT, {counted['background']:.1f} in the background"
    part.add(f"round trips: {name}", counted["round_trips"], "", target, note=note)


def _threads(machine: Machine, part: Part) -> None:
    ours, hand = _copies(machine)
    calls, threads = machine.scaled(THREADED_CALLS), str(THREADS)
    found = _calling(machine, "threads", ours, calls, "--by-hand", hand, "--threads", threads)
    rates = (3_000 / found[side]["wall"] for side in ("ours", "by_hand"))
    part.compare(f"{THREADS} threads in one process", *rates, "calls/s", 0.4, least=True)


def _asyncpg(machine: Machine, part: Part) -> None:
    ours, hand = _copies(machine)
    found = _calling(machine, "asyncpg", ours, machine.scaled(CALLS), "--by-hand", hand)
    _ratios(part, found, "AsyncSession on asyncpg: {}")


def _silent_redis(machine: Machine, part: Part) -> None:
    """Make the same calls with a Redis that accepts and never answers; the first of them are not left out."""
    calls, options = max(10, machine.scaled(SILENT_CALLS)), ("--kinds", "webhook", "--warm", "1")
    seconds = []
    with socket.create_server(("127.0.0.1", 0), backlog=1_024) as deaf:
        for redis_url in (machine.redis_url, f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"):
            url, began = machine.copy("ours"), time.monotonic()
            _calling(machine, "one-thread", url, calls - machine.scaled(WARM), *options, MAILGLASS_REDIS_URL=redis_url)
            seconds.append(time.monotonic() - began)
    name = f"Redis never answers: {calls} calls, more than with one that does"
    part.add(name, seconds[1] - seconds[0], "s", 2)


def _django(machine: Machine, part: Part) -> None:
    shop = "-m", "bench.shop"
    calls = str(WARM + machine.scaled(CALLS))
    found: list[dict[str, float]] = [
        json.loads(machine.run_to_its_end(machine.copy("ours"), *shop, "--calls", calls, *more))
        for more in ([], ["--without-app"])
    ]
    ours, without = found
    for kind, milliseconds in ours.items():
        note = f"{milliseconds:.2f} ms, and {without[kind]:.2f} ms without our app"
        part.add(f"Django and Anymail, added: {NAMES[kind]}", milliseconds - without[kind], "ms", 2, note=note)
    size = machine.scaled(BATCH)
    rates = json.loads(machine.run_to_its_end(machine.copy("ours"), *shop, "--batch", str(size)))
    for name, rate in rates.items():
        # Anymail sends a signal for each event, and each is recorded by itself.
        target = {"target": 1_000, "least": True} if name.startswith("our") else {}
        part.add(f"Django, {name}: a SendGrid batch of {size}", rate, "events/s", **target)


def _many_rows(machine: Machine, part: Part) -> None:
    """Compare calls with many recipients or events with one statement of each kind for all; then a wide id."""
    ours, hand = _copies(machine)
    configure(settings=Settings(database_url=ours, redis_url=machine.redis_url))
    recipients, events = machine.scaled(RECIPIENTS), machine.scaled(BATCH)

    def send(session: Session, ids: Sequence[str]) -> None:
        sent = [Sent(recipient=f"{id_}@example.com", message_id=id_, occurred_at=calling.AT) for id_ in ids]
        record_send(session, tenant_id="acme", provider="postmark", sent=sent)

    def webhook(session: Session, ids: Sequence[str]) -> None:
        record_webhook(session, tenant_id="acme", provider="postmark", events=[_event(id_, id_) for id_ in ids])

    def plain_send(session: Session, ids: Sequence[str]) -> None:
        by_hand.send(session, "acme", ids, [f"{id_}@example.com" for id_ in ids], calling.AT)

    def plain_webhook(session: Session, ids: Sequence[str]) -> None:
        by_hand.webhooks(session, "acme", ids, "event", calling.AT)

    sent = [_rate(url, call, "many", recipients) for url, call in ((ours, send), (hand, plain_send))]
    part.compare(f"a send of {recipients:,} recipients", *sent, "rows/s", 0.35, least=True)
    for name, tag in (("whose deliveries exist", "many"), ("that are too early", "nobody")):
        rates = [_rate(url, call, tag, events) for url, call in ((ours, webhook), (hand, plain_webhook))]
        part.compare(f"a webhook of {events} events {name}", *rates, "rows/s", 0.35, least=True)
    with psycopg.connect(ours) as connection:
        connection.execute("ALTER TABLE mailglass_deliveries SET (autovacuum_enabled = false)")
        connection.execute(WIDE, [machine.scaled(100_000)])

    def wide(session: Session, ids: Sequence[str]) -> None:
        record_webhook(session, tenant_id="acme", provider="postmark", events=[_event(f"w-{ids[0]}", "wide", "u1")])

    milliseconds = 1000 / _rate(ours, wide, "wide", 1)
    note = "the planner's statistics do not know of them"
    part.add(f"a webhook of an id of {machine.scaled(100_000):,} deliveries", milliseconds, "ms", 20, note=note)
    configure()


def _event(event_id: str, message_id: str, recipient: str | None = None) -> WebhookEvent:
    return WebhookEvent(
        type="delivered",
        occurred_at=calling.AT,
        provider_event_id=event_id,
        message_id=message_id,
        recipient=f"{recipient or message_id}@example.com",
    )


def _rate(url: str, call: Callable[[Session, Sequence[str]], None], tag: str, rows: int) -> float:
    """Return rows a second, as a median of several calls with their commits."""
    engine = calling.engine_of(url)
    seconds = []
    for number in range(ROUNDS):
        ids = [f"{tag}-{number}-{n}" for n in range(rows)]
        with Session(engine) as session:
            began = time.perf_counter()
            call(session, ids)
            session.commit()
            seconds.append(time.perf_counter() - began)
    engine.dispose()
    return rows / statistics.median(seconds)
