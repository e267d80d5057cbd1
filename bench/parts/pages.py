"""What `status`, `orphans`, `explain` and the page cost with many open and many reconciled orphans."""

from __future__ import annotations

import asyncio
import io
import re
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import httpx
import psycopg
from pydantic import SecretStr

import mailglass_reconcile
from bench.figures import Part
from bench.filling import NOBODYS, fill, fill_reconciled
from bench.machine import Machine
from bench.sweeping import engine_of, explain, sweep
from mailglass_reconcile import Settings, cli

RECONCILED, OPEN = 1_000_000, 1_000_000
ROUNDS, VIEWERS = 5, 10
REFRESH_SECONDS = 5.5
"""Longer than the page keeps an answer."""
TOKEN = secrets.token_urlsafe(24)
SIGNED_IN = {"authorization": f"Bearer {TOKEN}"}

IDS = """
SELECT (SELECT event_id::text FROM mailglass_open_orphans ORDER BY arrived_at OFFSET %s / 2 LIMIT 1),
       (SELECT substr(idempotency_key, 12) FROM mailglass_events WHERE type = 'reconciled' LIMIT 1),
       (SELECT id::text FROM mailglass_deliveries LIMIT 1),
       (SELECT candidate_id FROM mailglass_open_orphan_ids LIMIT 1)
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


def measure(machine: Machine) -> Part:
    """Run each command and open each page, on one database."""
    part, url = Part(), machine.copy("migrated", "pages")
    opened = machine.scaled(OPEN)
    fill(url, deliveries=machine.scaled(100_000))
    fill_reconciled(url, machine.scaled(RECONCILED), days=8, aged=5)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(A_WEEK)
    fill(url, messages=opened // 2, **NOBODYS)
    sweep(url)
    with psycopg.connect(url) as connection:
        middle, linked, delivery, message_id = connection.execute(IDS, [opened]).fetchall()[0]
    _commands(part, url, middle, linked, message_id)
    _pages(machine, part, url, middle, linked, delivery)
    machine.drop("pages")
    return part


def _commands(part: Part, url: str, middle: str, linked: str, message_id: str) -> None:
    """Run commands in this process, and let Postgres explain their statements once."""
    commands = [
        *("status", "status --check", "orphans", "orphans --newest-first"),
        *(
            f"orphans --after {middle}",
            "orphans --tenant tenant-3",
            "orphans --tenant nobody",
            "orphans --type bounced",
        ),
        *("orphans --state ambiguous", f"orphans --message-id {message_id}", "orphans --expired"),
        *(f"explain {middle}", f"explain {linked}", f"explain --message-id {message_id}"),
    ]
    names = {middle: "in the middle", linked: "linked", message_id: "ID"}
    for command in commands:
        words = command.split()
        name = " ".join(names.get(word, word) for word in words)
        times: list[float] = []
        mailglass_reconcile.configure(settings=Settings(database_url=SecretStr(url)))
        while len(times) < ROUNDS and sum(times) < 3_000:
            began = time.perf_counter()
            run_command(words)
            times.append(1000 * (time.perf_counter() - began))
        plans: list[tuple[float, int]] = []
        engine = engine_of(url)
        explain(engine, plans)
        mailglass_reconcile.configure(engine=engine, settings=Settings(database_url=SecretStr(url)))
        run_command(words)
        note = f"{sum(ms for ms, _ in plans):,.0f} ms in Postgres, {sum(b for _, b in plans):,} buffers"
        part.add(f"`{name}`", statistics.median(times), "ms", note=note)
    mailglass_reconcile.configure()


def run_command(words: list[str]) -> None:
    """Run a subcommand in this process, which spares it the start of Python."""
    output = io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            cli.main(words)
    except SystemExit as ended:
        if ended.code not in (0, 1):  # 1 is what `status --check` answers if there is a problem
            raise SystemExit(f"{' '.join(words)}: {output.getvalue()}") from None


def _pages(machine: Machine, part: Part, url: str, middle: str, linked: str, delivery: str) -> None:
    """Open each kind of page, with ten viewers at the same time."""
    paths = {
        "overview, 24 hours": "",
        "overview, 7 days": "?hours=168",
        "orphans": "orphans",
        "orphans, from the middle": f"orphans?after={middle}",
        "orphans of a tenant": "orphans?tenant=tenant-3",
        "orphans of a type that none has": "orphans?type=bounced",
        "orphans in a state that none is in": "orphans?state=ambiguous",
        "expired orphans": "orphans?state=expired",
        "an open event": f"events/{middle}",
        "a linked event": f"events/{linked}",
        "a delivery": f"deliveries/{delivery}",
        "readyz": "readyz",
        "metrics": "metrics",
    }
    with serving(machine, url) as (address, _):
        times = asyncio.run(_open(address, paths, ROUNDS if machine.scale == 1 else 1))
    for name, found in times.items():
        note = f"the worst {max(found):,.0f} ms"
        part.add(f"the page, {VIEWERS} viewers: {name}", statistics.median(found), "ms", note=note)


@contextmanager
def serving(machine: Machine, url: str) -> Iterator[tuple[str, int]]:
    """Serve the page while the block runs, and yield its address and the process's id."""
    command = [sys.executable, "-m", "mailglass_reconcile", "serve", "--port", "0"]
    environment = {**machine.environment(url), "MAILGLASS_WEB_TOKEN": TOKEN}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline() if process.stderr else ""
            yield re.findall(r"http://\S+/", line)[0], process.pid
        finally:
            process.terminate()


async def _open(address: str, paths: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Let all viewers open each page at the same time, in rounds, before each of which the answers are forgotten."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    async with httpx.AsyncClient(base_url=address, timeout=60, headers=SIGNED_IN) as client:

        async def one(name: str, path: str) -> None:
            began = time.perf_counter()
            answer = await client.get(path)
            if name != "readyz":  # it answers 503 if there is a problem, as `status --check` does
                answer.raise_for_status()
            times[name].append(1000 * (time.perf_counter() - began))

        for _ in range(rounds):
            for name, path in paths.items():
                await asyncio.gather(*(one(name, path) for _ in range(VIEWERS)))
            await asyncio.sleep(REFRESH_SECONDS if rounds > 1 else 0)
    return times
