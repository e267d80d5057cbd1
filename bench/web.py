"""How soon the page answers ten viewers beside many open and many reconciled orphans.

Run as `python -m bench.web`; `--quick` takes a tenth of every size.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psycopg
from pydantic import SecretStr

import mailglass_reconcile
from bench import data
from bench.pages import AS_OLD
from mailglass_reconcile import Settings
from mailglass_reconcile.store.engines import create_engine
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers
from mailglass_reconcile.web.rendering import REFRESH_SECONDS

ROUNDS = 5
VIEWERS = 10

IDS = """
SELECT (SELECT event_id::text FROM mailglass_open_orphans ORDER BY arrived_at OFFSET %s / 2 LIMIT 1),
       (SELECT substr(idempotency_key, 12) FROM mailglass_events WHERE type = 'reconciled' LIMIT 1),
       (SELECT id::text FROM mailglass_deliveries LIMIT 1)
"""
A_WEEK = """
INSERT INTO mailglass_reconcile_runs (started_at, finished_at, kind, origin, status, scanned, unmatched, remaining,
       open_groups)
SELECT t, t, 'full', 'beat', 'ok', 1000, 1000, 1000,
       (SELECT jsonb_agg(jsonb_build_object('state', 'unmatched', 'tenant_id', 'tenant-' || g, 'provider', 'postmark',
                                            'orphans', 10)) FROM generate_series(1, 100) AS g)
  FROM generate_series(now() AT TIME ZONE 'UTC' - interval '7 days', now() AT TIME ZONE 'UTC',
                       interval '5 minutes') AS t
"""
"""Runs of a week, each of which has counted a hundred groups."""


@contextmanager
def serving(url: str) -> Iterator[str]:
    """Serve the page while the block runs, and yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mailglass_reconcile", "serve", "--port", "0"],
        env={**os.environ, "MAILGLASS_DATABASE_URL": url},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stderr.readline() if process.stderr else ""
        yield re.findall(r"http://\S+/", line)[0]
    finally:
        process.terminate()
        process.wait()


async def ask(address: str, paths: dict[str, str], viewers: int) -> dict[str, list[float]]:
    """Let all viewers ask for each page at the same time, in rounds, before each of which the answers are forgotten."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:

        async def one(name: str, path: str) -> None:
            began = time.perf_counter()
            (await client.get(path)).raise_for_status()
            times[name].append(1000 * (time.perf_counter() - began))

        for _ in range(ROUNDS):
            for name, path in paths.items():
                await asyncio.gather(*(one(name, path) for _ in range(viewers)))
            await asyncio.sleep(REFRESH_SECONDS + 0.5)
    return times


def pages(url: str, opened: int) -> None:
    """Measure every kind of page, for one viewer and for ten."""
    with psycopg.connect(url) as connection:
        middle, linked, delivery = connection.execute(IDS, (opened,)).fetchall()[0]
    paths = {
        "overview, 24 hours": "",
        "overview, 7 days": "?hours=168",
        "overview of a tenant, 7 days": "?hours=168&tenant=tenant-3",
        "orphans": "orphans",
        "orphans, from the middle": f"orphans?after={middle}" if middle else "orphans",
        "orphans of a tenant": "orphans?tenant=tenant-3",
        "orphans of a tenant that has none": "orphans?tenant=nobody",
        "orphans of a type that none has": "orphans?type=bounced",
        "orphans in a state that none is in": "orphans?state=ambiguous",
        "orphans with a message id": "orphans?message_id=nobody",
        "expired orphans": "orphans?state=expired",
        "an open event": f"events/{middle or linked}",
        "a linked event": f"events/{linked}",
        "a delivery": f"deliveries/{delivery}",
        "readyz": "readyz",
        "metrics": "metrics",
    }
    print(f"{opened:,} open{'one viewer':>45}{f'{VIEWERS} viewers at once':>28}", flush=True)
    with serving(url) as address:
        asyncio.run(ask(address, paths, 1))
        alone, together = (asyncio.run(ask(address, paths, viewers)) for viewers in (1, VIEWERS))
    for name in paths:
        shown = (f"{statistics.median(t):>12.0f} {max(t):>8.0f} ms" for t in (alone[name], together[name]))
        print(f"  {name:<38}{'  '.join(shown)}", flush=True)


def main() -> None:
    """Fill a database step by step, and measure at each."""
    parser = argparse.ArgumentParser(prog="python -m bench.web", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of every size, to try it out")
    scale = 10 if parser.parse_args().quick else 1
    with (
        servers.postgres("fsync=off", "full_page_writes=off", "max_wal_size=8GB") as server,
        servers.redis() as redis_url,
    ):
        url = data.database(server, "web")
        settings = Settings(database_url=SecretStr(url), redis_url=SecretStr(redis_url), sweep_seconds=3_600)
        mailglass_reconcile.configure(settings=settings)
        runner.migrate(create_engine(settings), settings, lambda line: None)
        data.fill(url, deliveries=100_000 // scale)
        data.fill_reconciled(url, 1_000_000 // scale)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(A_WEEK)
            connection.execute("SET session_replication_role = replica")
            connection.execute(AS_OLD + " AND tenant_id < 'tenant-5'")
            connection.execute("VACUUM ANALYZE")
        print(f"{1_000_000 // scale:,} reconciled, half of them older than the maximum age; median and worst")
        for kind, opened, messages in (("n", 100_000, 50_000), ("o", 1_000_000, 450_000)):
            data.fill(url, messages=messages // scale, kind=kind)
            mailglass_reconcile.reconcile()
            pages(url, opened // scale)


if __name__ == "__main__":
    main()
