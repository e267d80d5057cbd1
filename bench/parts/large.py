"""A large database, started by hand: up to ten million open orphans and fifty million rows in the ledger."""

from __future__ import annotations

import time

import httpx
import psycopg
from pydantic import SecretStr

import mailglass_reconcile
from bench.figures import Part
from bench.filling import NOBODYS, fill, fill_reconciled
from bench.machine import Machine
from bench.parts.pages import SIGNED_IN, run_command, serving
from bench.sweeping import sweep
from mailglass_reconcile import Settings

OPEN = (1_000_000, 3_000_000, 10_000_000)
OTHERS = 4
"""Rows in the ledger for each open orphan, besides it: orphans and the `reconciled` events that closed them."""

COMMANDS = ("prune", "status", "status --live", "orphans")


def measure(machine: Machine) -> Part:
    """Measure sweep, prune, status, page and migrate at each size; the last migrates Mailglass's tables alone."""
    part = Part()
    for opened in map(machine.scaled, OPEN):
        url = machine.copy("migrated", "large")
        fill_reconciled(url, OTHERS * opened // 2, days=8, below="tenant-5")
        fill(url, deliveries=opened // 10, messages=opened // 2, **NOBODYS)
        seconds = {"sweep, the first look": sweep(url)["seconds"], "sweep": sweep(url)["seconds"]}
        for command in COMMANDS:
            seconds[command] = _timed(url, command)
        with (
            serving(machine, url) as (address, _),
            httpx.Client(base_url=address, headers=SIGNED_IN, timeout=240) as client,
        ):
            began = time.monotonic()
            client.get("").raise_for_status()
            seconds["the page, overview"] = time.monotonic() - began
        _timed(url, "migrate --remove")
        seconds["migrate"] = _timed(url, "migrate")
        with psycopg.connect(url) as connection:
            rows = connection.execute("SELECT count(*) FROM mailglass_events").fetchall()[0][0]
        for name, taken in seconds.items():
            part.add(f"{name}: {opened:,} open, {rows:,} in the ledger", taken, "s")
            part.curves.setdefault(f"large: {name}", []).append((opened, taken))
    machine.drop("large")
    return part


def _timed(url: str, command: str) -> float:
    mailglass_reconcile.configure(settings=Settings(database_url=SecretStr(url)))
    began = time.monotonic()
    run_command(command.split())
    return time.monotonic() - began
