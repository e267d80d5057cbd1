"""What `status`, `orphans` and `explain` cost beside many open and many reconciled orphans: milliseconds and buffers.

Run as `python -m bench.pages`; `--quick` takes a tenth of every size. It prints the table of docs/operating.md.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple
from uuid import UUID

import psycopg
import sqlalchemy as sa
from mailglass_reconcile.ops.listed import Filters
from mailglass_reconcile.ops.page import page
from pydantic import SecretStr

import mailglass_reconcile
from bench import data
from bench.sweep import BUFFERS, count_buffers
from mailglass_reconcile import Settings
from mailglass_reconcile.ops.explanation import explain
from mailglass_reconcile.ops.messages import events_of
from mailglass_reconcile.ops.status import check, status
from mailglass_reconcile.store.engines import create_engine
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers

RUNS = 5
PATIENCE_SECONDS = 3.0
"""After this, a call is not repeated."""
DURATION = re.compile(r"duration: ([0-9.]+) ms")

EVENTS = """
SELECT (SELECT event_id::text FROM mailglass_open_orphans ORDER BY arrived_at OFFSET %s / 2 LIMIT 1),
       (SELECT substr(idempotency_key, 12) FROM mailglass_events WHERE type = 'reconciled' LIMIT 1),
       (SELECT candidate_id FROM mailglass_open_orphan_ids LIMIT 1)
"""

AS_OLD = "UPDATE mailglass_events SET inserted_at = inserted_at - interval '8 days' WHERE needs_reconciliation"


class Cost(NamedTuple):
    """Of one call: milliseconds in all, as a median; milliseconds in the database and buffers, of one call."""

    milliseconds: float
    database: float
    buffers: int


def measure(engine: sa.Engine, explained: sa.Engine, found: list[str], call: Callable[..., object]) -> Cost:
    """Time a few calls, and let Postgres explain one."""
    times: list[float] = []
    while len(times) < RUNS and sum(times) < 1000 * PATIENCE_SECONDS:
        began = time.perf_counter()
        call(engine)
        times.append(1000 * (time.perf_counter() - began))
    found.clear()
    call(explained)
    database = sum(float(duration) for said in found for duration in DURATION.findall(said))
    buffers = sum(int(number or 0) for said in found for number in BUFFERS.search(said).groups())
    return Cost(statistics.median(times), database, buffers)


def explaining(engine: sa.Engine) -> list[str]:
    """Let Postgres explain every statement of *engine*, and return the list of what it says of those with a plan."""
    found: list[str] = []
    count_buffers(engine, [], found.append)
    return found


def pages(url: str, opened: int) -> dict[str, Cost]:
    """Measure every page of interest, and return its cost by its name."""
    settings = Settings(database_url=SecretStr(url))
    mailglass_reconcile.configure(settings=settings)
    engine, explained = create_engine(settings), create_engine(settings)
    found = explaining(explained)
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
    costs = {}
    for name, call in calls.items():
        if opened or "middle" not in name:
            costs[name] = measure(engine, explained, found, call)
            print(f"  {opened:>9,} open: {name:<52}{_ms(costs[name].milliseconds):>12}", file=sys.stderr, flush=True)
    engine.dispose()
    return costs


def _ms(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1_000 else f"{milliseconds:.1f} ms"


def table(costs: Mapping[int, Mapping[str, Cost]]) -> str:
    """Return the costs as a Markdown table, a column for each number of open orphans."""
    sizes, most = list(costs), max(costs)
    titles = [f"{size:,} open" if size else "nothing open" for size in sizes]
    lines = [f"| | {' | '.join(titles)} | of which in Postgres | buffers |", f"|---|{'---|' * (len(sizes) + 2)}"]
    for name, last in costs[most].items():
        cells = [_ms(costs[size][name].milliseconds) if name in costs[size] else "" for size in sizes]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {_ms(last.database)} | {last.buffers:,} |")
    return "\n".join(lines)


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
        print(f"Beside {1_000_000 // scale:,} reconciled orphans, half of them older than the maximum age:\n")
        mailglass_reconcile.configure(settings=settings)
        mailglass_reconcile.reconcile()
        costs = {0: pages(url, 0)}
        for kind, opened, messages in (("n", 100_000, 50_000), ("o", 1_000_000, 450_000)):
            data.fill(url, messages=messages // scale, kind=kind)
            mailglass_reconcile.configure(settings=settings)
            mailglass_reconcile.reconcile()
            costs[opened // scale] = pages(url, opened // scale)
        print(table(costs))


if __name__ == "__main__":
    main()
