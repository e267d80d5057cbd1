"""What `status`, `orphans` and `explain` cost beside many open and many reconciled orphans: milliseconds and buffers.

Run as `python -m bench.pages`; `--quick` takes a tenth of every size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from uuid import UUID

import psycopg
import sqlalchemy as sa
from pydantic import SecretStr

import mailglass_reconcile
from bench import data
from bench.sweep import count_buffers
from mailglass_reconcile import Settings
from mailglass_reconcile.ops.explanation import explain
from mailglass_reconcile.ops.listed import Filters
from mailglass_reconcile.ops.messages import events_of
from mailglass_reconcile.ops.page import page
from mailglass_reconcile.ops.status import check, status
from mailglass_reconcile.store.database import create_engine
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers

RUNS = 5

EVENTS = """
SELECT (SELECT event_id::text FROM mailglass_open_orphans ORDER BY arrived_at OFFSET %s / 2 LIMIT 1),
       (SELECT substr(idempotency_key, 12) FROM mailglass_events WHERE type = 'reconciled' LIMIT 1),
       (SELECT candidate_id FROM mailglass_open_orphan_ids LIMIT 1)
"""

AS_OLD = "UPDATE mailglass_events SET inserted_at = inserted_at - interval '8 days' WHERE needs_reconciliation"


def measure(
    name: str, engine: sa.Engine, explained: sa.Engine, buffers: list[int], call: Callable[..., object]
) -> None:
    """Print the median of a few calls, the statements of one, and the buffers of its plans."""
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        call(engine)
        times.append(1000 * (time.perf_counter() - began))
    buffers.clear()
    call(explained)
    print(f"  {name:<52}{statistics.median(times):>10.1f} ms{len(buffers):>5} plans{sum(buffers):>10,} buffers")


def pages(url: str, opened: int) -> None:
    """Measure every page of interest."""
    settings = Settings(database_url=SecretStr(url))
    mailglass_reconcile.configure(settings=settings)
    engine, explained, buffers = create_engine(settings), create_engine(settings), list[int]()
    count_buffers(explained, buffers)
    with psycopg.connect(url) as connection:
        middle, linked, message_id = connection.execute(EVENTS, (opened,)).fetchall()[0]
    calls: dict[str, Callable[[sa.Engine], object]] = {
        "status": status,
        "status --check": check,
        "status --live": lambda e: status(e, count_now=True),
        "orphans": lambda e: page(e, Filters()),
        "orphans --newest-first": lambda e: page(e, Filters(), newest_first=True),
        "orphans --after, in the middle": lambda e: page(e, Filters(), after=middle),
        "orphans --tenant": lambda e: page(e, Filters(tenant_id="tenant-3")),
        "orphans --tenant, who has none": lambda e: page(e, Filters(tenant_id="nobody")),
        "orphans --type, which none has": lambda e: page(e, Filters(type="bounced")),
        "orphans --state ambiguous, of which there are none": lambda e: page(e, Filters(state="ambiguous")),
        "orphans --message-id": lambda e: page(e, Filters(message_id=message_id or "none")),
        "orphans --expired": lambda e: page(e, Filters(state="expired")),
        "explain, linked": lambda e: explain(e, UUID(linked)),
        "explain --message-id": lambda e: events_of(e, message_id or "none"),
    }
    if opened:
        calls["explain, open"] = lambda e: explain(e, UUID(middle))
    print(f"{opened:,} open", flush=True)
    for name, call in calls.items():
        if opened or "middle" not in name:
            measure(name, engine, explained, buffers, call)
    engine.dispose()


def main() -> None:
    """Fill a database step by step, and measure at each."""
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of every size, to try it out")
    scale = 10 if parser.parse_args().quick else 1
    with (
        servers.postgres("fsync=off", "full_page_writes=off", "max_wal_size=8GB") as server,
        servers.redis() as redis_url,
    ):
        url = data.database(server, "pages")
        settings = Settings(database_url=SecretStr(url), redis_url=SecretStr(redis_url), sweep_seconds=3_600)
        runner.migrate(create_engine(settings), settings, lambda line: None)
        data.fill(url, deliveries=100_000 // scale)
        data.fill_reconciled(url, 1_000_000 // scale)
        # The half of them, by a day more than the maximum age: what a page of expired ones has to pass over.
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(AS_OLD + " AND tenant_id < 'tenant-5'")
            connection.execute("VACUUM ANALYZE")
        print(f"{1_000_000 // scale:,} reconciled, half of them older than the maximum age")
        pages(url, 0)
        for kind, opened, messages in (("n", 100_000, 50_000), ("o", 1_000_000, 450_000)):
            data.fill(url, messages=messages // scale, kind=kind)
            mailglass_reconcile.configure(settings=settings)
            mailglass_reconcile.reconcile()
            pages(url, opened // scale)


if __name__ == "__main__":
    main()
