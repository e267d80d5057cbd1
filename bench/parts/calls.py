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

from bench import call_process, hand_written, proxy
from bench.figures import Part
from bench.filling import fill
from bench.testbed import Testbed, vacuum
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


def measure(testbed: Testbed) -> Part:
    """Measure single calls in every way that an application makes them, and calls with many rows."""
    part = Part()
    for source, name in (("migrated", "package"), ("bare", "baseline")):
        url = testbed.copy(source, name)
        fill(url, deliveries=testbed.scaled(100_000))
        with psycopg.connect(url) as connection:
            connection.execute(DELIVERIES, [max(WARM + testbed.scaled(THREADED_CALLS), 14 * testbed.scaled(BATCH))])
        vacuum(url)
    _measure_one_thread(testbed, part)
    _measure_delayed(testbed, part)
    _measure_threads(testbed, part)
    _measure_asyncpg(testbed, part)
    _measure_silent_redis(testbed, part)
    _measure_django(testbed, part)
    _measure_many_rows(testbed, part)
    testbed.drop("package", "baseline", "run", "baseline run")
    return part


def _copies(testbed: Testbed) -> tuple[str, str]:
    return testbed.copy("package"), testbed.copy("baseline", "baseline run")


def _run_calls(testbed: Testbed, how: str, url: str, calls: int, *options: str, **settings: str) -> dict[str, Any]:
    """Run `bench.call_process` with *calls* calls after the warm-up, and return its figures."""
    warm = testbed.scaled(WARM)
    command = (
        "-m",
        "bench.call_process",
        how,
        "--url",
        url,
        "--warm",
        str(warm),
        "--calls",
        str(warm + calls),
        *options,
    )
    results: dict[str, Any] = json.loads(testbed.run_to_its_end(url, *command, **settings))
    return results


def _measure_one_thread(testbed: Testbed, part: Part) -> None:
    package_url, baseline_url = _copies(testbed)
    results = _run_calls(testbed, "one-thread", package_url, testbed.scaled(CALLS), "--baseline", baseline_url)
    _add_ratios(part, results, "{}")
    for kind, name in NAMES.items():
        package, baseline = results[kind]["package"]["cpu"], results[kind]["baseline"]["cpu"]
        part.compare(f"CPU of Python, with the background thread's: {name}", package, baseline, "ms", CPU_RATIO)


def _add_ratios(part: Part, results: dict[str, Any], name: str) -> None:
    for kind, sides in results.items():
        part.compare(name.format(NAMES[kind]), sides["package"]["wall"], sides["baseline"]["wall"], "ms", RATIO)


def _measure_delayed(testbed: Testbed, part: Part) -> None:
    """Measure calls through the proxy: first with 5 ms for each round trip, then counting round trips."""
    package_url, baseline_url = _copies(testbed)
    with proxy.in_front_of(testbed.server, DELAY) as proxied:
        urls = proxied.url(package_url), "--baseline", proxied.url(baseline_url)
        calls = testbed.scaled(DELAYED_CALLS)
        _add_ratios(part, _run_calls(testbed, "one-thread", urls[0], calls, *urls[1:]), "5 ms per round trip: {}")
    package_url, baseline_url = _copies(testbed)
    with proxy.in_front_of(testbed.server) as proxied:
        options = "--control", str(proxied.control)
        url, calls = proxied.url(package_url), testbed.scaled(CALLS)
        results = _run_calls(testbed, "one-thread", url, calls, *options)
        with psycopg.connect(testbed.copy("package"), autocommit=True) as connection:
            connection.execute("INSERT INTO mailglass_handled_types VALUES ('delivered', 'suppress', now())")
        handled = _run_calls(testbed, "one-thread", url, calls, *options, "--kinds", "webhook")
    for kind, counts in results.items():
        _add_round_trips(part, NAMES[kind], counts, ROUND_TRIPS[kind])
    _add_round_trips(part, f"{NAMES['webhook']}, with a handler", handled["webhook"], ROUND_TRIPS["webhook"])
    for name in ("connections", "threads"):
        verb = "opened" if name == "connections" else "started"
        maximum = max(counts[name] for counts in results.values())
        part.add(f"{name} {verb} per call, maximum of the three kinds", maximum, "", 0)


def _add_round_trips(part: Part, name: str, counts: dict[str, float], target: int) -> None:
    note = f"and {counts['begins_and_ends']:.1f} for BEGIN and COMMIT, {counts['background']:.1f} in the background"
    part.add(f"round trips: {name}", counts["round_trips"], "", target, note=note)


def _measure_threads(testbed: Testbed, part: Part) -> None:
    package_url, baseline_url = _copies(testbed)
    calls, threads = testbed.scaled(THREADED_CALLS), str(THREADS)
    results = _run_calls(testbed, "threads", package_url, calls, "--baseline", baseline_url, "--threads", threads)
    rates = (3_000 / results[side]["wall"] for side in ("package", "baseline"))
    part.compare(f"{THREADS} threads in one process", *rates, "calls/s", 0.4, least=True)


def _measure_asyncpg(testbed: Testbed, part: Part) -> None:
    package_url, baseline_url = _copies(testbed)
    results = _run_calls(testbed, "asyncpg", package_url, testbed.scaled(CALLS), "--baseline", baseline_url)
    _add_ratios(part, results, "AsyncSession on asyncpg: {}")


def _measure_silent_redis(testbed: Testbed, part: Part) -> None:
    """Make the same calls with a Redis that accepts and never answers; this includes the first calls."""
    calls, options = max(10, testbed.scaled(SILENT_CALLS)), ("--kinds", "webhook", "--warm", "1")
    seconds = []
    with socket.create_server(("127.0.0.1", 0), backlog=1_024) as deaf:
        for redis_url in (testbed.redis_url, f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"):
            url, began = testbed.copy("package"), time.monotonic()
            _run_calls(
                testbed, "one-thread", url, calls - testbed.scaled(WARM), *options, MAILGLASS_REDIS_URL=redis_url
            )
            seconds.append(time.monotonic() - began)
    name = f"Redis never answers: extra time of {calls} calls"
    part.add(name, seconds[1] - seconds[0], "s", 2)


def _measure_django(testbed: Testbed, part: Part) -> None:
    shop = "-m", "bench.django_process"
    calls = str(WARM + testbed.scaled(CALLS))
    results: list[dict[str, float]] = [
        json.loads(testbed.run_to_its_end(testbed.copy("package"), *shop, "--calls", calls, *options))
        for options in ([], ["--without-app"])
    ]
    with_app, without_app = results
    for kind, milliseconds in with_app.items():
        note = f"{milliseconds:.2f} ms, and {without_app[kind]:.2f} ms without our app"
        part.add(f"Django and Anymail, added: {NAMES[kind]}", milliseconds - without_app[kind], "ms", 2, note=note)
    size = testbed.scaled(BATCH)
    rates = json.loads(testbed.run_to_its_end(testbed.copy("package"), *shop, "--batch", str(size)))
    for name, rate in rates.items():
        # Anymail sends a signal for each event, and each is recorded by itself.
        target = {"target": 1_000, "least": True} if name.startswith("our") else {}
        part.add(f"Django, {name}: a SendGrid batch of {size}", rate, "events/s", **target)


def _measure_many_rows(testbed: Testbed, part: Part) -> None:
    """Compare calls with many recipients or events with one hand-written statement of each kind; then a wide id."""
    package_url, baseline_url = _copies(testbed)
    configure(settings=Settings(database_url=package_url, redis_url=testbed.redis_url))
    recipients, events = testbed.scaled(RECIPIENTS), testbed.scaled(BATCH)

    def send(session: Session, ids: Sequence[str]) -> None:
        sent = [Sent(recipient=f"{id_}@example.com", message_id=id_, occurred_at=call_process.AT) for id_ in ids]
        record_send(session, tenant_id="acme", provider="postmark", sent=sent)

    def webhook(session: Session, ids: Sequence[str]) -> None:
        record_webhook(session, tenant_id="acme", provider="postmark", events=[_event(id_, id_) for id_ in ids])

    def plain_send(session: Session, ids: Sequence[str]) -> None:
        hand_written.send(session, "acme", ids, [f"{id_}@example.com" for id_ in ids], call_process.AT)

    def plain_webhook(session: Session, ids: Sequence[str]) -> None:
        hand_written.webhooks(session, "acme", ids, "event", call_process.AT)

    sent = [_rate(url, call, "many", recipients) for url, call in ((package_url, send), (baseline_url, plain_send))]
    part.compare(f"a send of {recipients:,} recipients", *sent, "rows/s", 0.35, least=True)
    for name, tag in (("whose deliveries exist", "many"), ("that are too early", "nobody")):
        rates = [_rate(url, call, tag, events) for url, call in ((package_url, webhook), (baseline_url, plain_webhook))]
        part.compare(f"a webhook of {events} events {name}", *rates, "rows/s", 0.35, least=True)
    with psycopg.connect(package_url) as connection:
        connection.execute("ALTER TABLE mailglass_deliveries SET (autovacuum_enabled = false)")
        connection.execute(WIDE, [testbed.scaled(100_000)])

    def wide(session: Session, ids: Sequence[str]) -> None:
        record_webhook(session, tenant_id="acme", provider="postmark", events=[_event(f"w-{ids[0]}", "wide", "u1")])

    milliseconds = 1000 / _rate(package_url, wide, "wide", 1)
    note = "the planner's statistics do not know of them"
    part.add(f"a webhook of an id of {testbed.scaled(100_000):,} deliveries", milliseconds, "ms", 20, note=note)
    configure()


def _event(event_id: str, message_id: str, recipient: str | None = None) -> WebhookEvent:
    return WebhookEvent(
        type="delivered",
        occurred_at=call_process.AT,
        provider_event_id=event_id,
        message_id=message_id,
        recipient=f"{recipient or message_id}@example.com",
    )


def _rate(url: str, call: Callable[[Session, Sequence[str]], None], tag: str, rows: int) -> float:
    """Return rows a second, as a median of several calls with their commits."""
    engine = call_process.engine_of(url)
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
