"""A large database, started by hand: up to ten million open orphans and fifty million rows in the ledger."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stderr, redirect_stdout

import psycopg
from pydantic import SecretStr

import mailglass_reconcile
from bench import looking
from bench.figures import Part
from bench.filling import NOBODYS, fill, fill_reconciled
from bench.machine import Machine
from bench.sweeping import sweep
from mailglass_reconcile import Settings, cli

OPEN = (1_000_000, 3_000_000, 10_000_000)
OTHERS = 4
"""Rows in the ledger for each open orphan, besides it: orphans and the `reconciled` events that closed them."""

COMMANDS = ("prune", "status", "orphans")


def measure(machine: Machine) -> Part:
    """Measure sweep, prune, status, page and migrate at each size; the last migrates Mailglass's tables alone."""
    part = Part()
    for opened in map(machine.scaled, OPEN):
        url = machine.copy("migrated", "large")
        fill_reconciled(url, OTHERS * opened // 2, days=8, aged=5, layout="in order")
        fill(url, deliveries=opened // 10, messages=opened // 2, layout="in order", **NOBODYS)
        note = f"{_rows(url):,} rows in the ledger"

        def add(name: str, taken: float, note: str = note, opened: int = opened) -> None:
            part.add(f"{opened:,} open: {name}", taken, "s", note=note)
            part.curves.setdefault(f"large: {name}", []).append((opened, taken))

        looks = _first_looks(url)
        add("the first look", sum(looks), f"{note}; {len(looks)} sweeps")
        add("a sweep", sweep(url)["seconds"])
        for command in COMMANDS:
            add(command, _timed(url, command))
        add("the page, overview", looking.overview(machine, url))
        _timed(url, "migrate --remove --yes")
        add("migrate", _timed(url, "migrate"))
    machine.drop("large")
    return part


def _first_looks(url: str) -> list[float]:
    """Sweep until one has looked at everything, and return how long each took: a deadline ends it after minutes."""
    looks = []
    status = "partial"
    while status == "partial":
        swept = sweep(url)
        looks.append(swept["seconds"])
        status = swept["status"]
    return looks


def _rows(url: str) -> int:
    with psycopg.connect(url) as connection:
        return int(connection.execute("SELECT count(*) FROM mailglass_events").fetchall()[0][0])


def _timed(url: str, command: str) -> float:
    mailglass_reconcile.configure(settings=Settings(database_url=SecretStr(url)))
    began = time.monotonic()
    _run_command(command.split())
    return time.monotonic() - began


def _run_command(words: list[str]) -> None:
    """Run a subcommand in this process, which spares it the start of Python."""
    output = io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            cli.main(words)
    except SystemExit as ended:
        if ended.code not in (0, 1):  # 1 is what `status --check` answers if there is a problem
            raise SystemExit(f"{' '.join(words)}: {output.getvalue()}") from None
