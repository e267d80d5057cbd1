"""A large database, started by hand: up to ten million open orphans and fifty million rows in the ledger."""

from __future__ import annotations

import time

import httpx
import psycopg

from bench.figures import Part
from bench.filling import NOBODYS, fill, fill_reconciled
from bench.machine import Machine
from bench.parts.pages import serving
from bench.sweeping import sweep

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
            seconds[command] = _timed(machine, url, command)
        with serving(machine, url) as (address, _), httpx.Client(base_url=address, timeout=240) as client:
            began = time.monotonic()
            client.get("").raise_for_status()
            seconds["the page, overview"] = time.monotonic() - began
        _timed(machine, url, "migrate --remove")
        seconds["migrate"] = _timed(machine, url, "migrate")
        with psycopg.connect(url) as connection:
            rows = connection.execute("SELECT count(*) FROM mailglass_events").fetchall()[0][0]
        for name, taken in seconds.items():
            part.add(f"{name}: {opened:,} open, {rows:,} in the ledger", taken, "s")
            part.curves.setdefault(f"large: {name}", []).append((opened, taken))
    machine.drop("large")
    return part


def _timed(machine: Machine, url: str, command: str) -> float:
    """Return the seconds of a command, with the quarter of a second in which Python starts."""
    began = time.monotonic()
    machine.run_to_its_end(url, "-m", "mailglass_reconcile", *command.split())
    return time.monotonic() - began
