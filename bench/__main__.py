"""Measure the figures of docs/bench.md side by side, and print each beside its target.

Run as `python -m bench`; `--quick` takes a tenth of every size, `--runs N` another number than five.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import threading
from collections import defaultdict
from urllib.parse import urlsplit

import psycopg

from bench import data, dispatch, recording, rivals
from bench.machine import Machine
from mailglass_reconcile.testing import servers


class Bench(Machine):
    """One run of the benchmark on its own servers; `missed` counts the figures that missed their target."""

    def __init__(self, server: str, redis_url: str, runs: int, scale: int) -> None:
        """Take *runs* medians; every size is divided by *scale*."""
        super().__init__(server, redis_url, scale)
        self.runs = runs
        self.missed = 0

    def report(self, name: str, value: float, target: float, *, at_most: bool = False, note: str = "") -> None:
        """Print one figure beside its target."""
        good = value <= target if at_most else value >= target
        self.missed += not good
        sign, word = ("<=" if at_most else ">="), ("ok" if good else "MISSED")
        print(f"{word:<7}{name:<66}{value:>10.2f}  {sign} {target:g}  {note}", flush=True)

    def speed(self) -> None:
        """Compare one sweep, and two on disjoint windows, with the bare statement and the original's algorithm."""
        messages = 50_000 // self.scale
        storm = self.migrated("storm")
        data.fill(storm, deliveries=messages * 9 // 10, messages=messages)
        middle = data.middle(storm)
        runs: dict[str, list[float]] = defaultdict(list)
        links = messages * 2 * 9 // 10
        for _ in range(self.runs):
            seconds, postgres = rivals.bare_statement(data.database(self.server, "run", "storm"))
            runs["bare"].append(links / seconds)
            runs["bare, Postgres"].append(postgres * 100_000 / links)
            one = self.sweep(data.database(self.server, "run", "storm"))
            two = self.sweeps(data.database(self.server, "run", "storm"), ("--until", middle), ("--after", middle))
            linked = sum(f["linked"] for f in two)
            # A delivery's two events may stand on either side of the middle, and then one of them waits.
            if one["linked"] != links or linked < 0.99 * links:
                raise SystemExit(f"of {links} orphans one sweep linked {one['linked']}, two {linked}")
            runs["one"].append(links / one["seconds"])
            runs["one, Postgres"].append(one["postgres"] * 100_000 / links)
            runs["one, Python"].append(one["python"] * 100_000 / links)
            runs["two"].append(linked / (max(f["ended"] for f in two) - min(f["began"] for f in two)))
            run = data.database(self.server, "run", "storm")
            runs["original"].append(rivals.original(run, self.redis_url, 2_000 // self.scale))
        of = {name: statistics.median(found) for name, found in runs.items()}
        print(
            f"links a second: bare statement {of['bare']:,.0f}, one process {of['one']:,.0f}, two {of['two']:,.0f},"
            f" original's algorithm, on a sample, {of['original']:,.0f}"
        )
        print(
            f"CPU seconds per 100,000 links: bare statement {of['bare, Postgres']:.2f} in Postgres; one process"
            f" {of['one, Postgres']:.2f} in Postgres, {of['one, Python']:.2f} in Python"
        )
        self.report("one process / bare statement", of["one"] / of["bare"], 0.4)
        self.report(
            "CPU of Postgres: one process / bare statement",
            of["one, Postgres"] / of["bare, Postgres"],
            1.7,
            at_most=True,
        )
        self.report("two processes on disjoint windows / one", of["two"] / of["one"], 1.7)
        self.report("one process / original's algorithm", of["one"] / of["original"], 12)

    def wide(self) -> None:
        """Compare many recipients under one message id with as many ids; then one id of a great many deliveries."""
        recipients = 20_000 // self.scale
        times: dict[bool, list[float]] = {False: [], True: []}
        for one_id, found in times.items():
            data.fill_campaign(self.migrated("campaign"), recipients, recipients, one_id=one_id)
            for _ in range(self.runs):
                swept = self.sweep(data.database(self.server, "run", "campaign"))
                if swept["linked"] != recipients:
                    raise SystemExit(f"of {recipients} recipients a sweep linked {swept['linked']}")
                found.append(swept["seconds"])
        distinct, one = (statistics.median(found) for found in times.values())
        name = f"{recipients:,} recipients under one id / {recipients:,} ids"
        self.report(name, one / distinct, 2, at_most=True, note=f"{one:.2f} s / {distinct:.2f} s")
        memory = []
        for deliveries in (1_000, 1_000_000 // self.scale):
            url = self.migrated("campaign")
            data.fill_campaign(url, deliveries, 1_000, one_id=True)
            memory.append(self.sweep(url)["memory"])
        self.report("peak memory, an id of 1,000,000 - of 1,000, MB", (memory[1] - memory[0]) / 1024, 50, at_most=True)
        data.drop(self.server, "campaign")

    def nothing_open(self) -> None:
        """Count the buffers of a sweep that has nothing to do beside few and many reconciled orphans."""
        counts = []
        for orphans in (10_000 // self.scale, 1_000_000 // self.scale):
            url = self.migrated("settled")
            data.fill_reconciled(url, orphans)
            counts.append(self.sweep(url, "--buffers")["buffers"])
            self.report(f"buffers, nothing open, {orphans:,} reconciled", counts[-1], 100, at_most=True)
        self.report("buffers beside many - beside few", counts[1] - counts[0], 0, at_most=True)
        data.drop(self.server, "settled")

    def never_matching(self) -> None:
        """Sweep many orphans that never match: time, writes, memory, and one younger that does match."""
        few, many = self.migrated("few"), self.migrated("many")
        data.fill(few, deliveries=100_000 // self.scale, messages=500, kind="n")
        data.fill(many, deliveries=100_000 // self.scale, messages=500_000 // self.scale, kind="n")
        small, big = self.sweep(few)["memory"], self.sweep(many)["memory"]
        self.report("peak memory, many open - 1,000 open, MB", (big - small) / 1024, 50, at_most=True)
        with psycopg.connect(many, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            before = _written(connection)
            seconds, joins = [], []
            for _ in range(self.runs):
                joins.append(rivals.counting_join(many))
                seconds.append(self.sweep(many)["seconds"])
            written = _written(connection) - before
        sweep, join = statistics.median(seconds), statistics.median(joins)
        name = "never matching: sweep - (2 x the count + 0.4 s), s"
        self.report(name, sweep - 2 * join - 0.4, 0, at_most=True, note=f"{sweep:.2f} s / {join:.2f} s")
        self.report("never matching: rows written", written, 0, at_most=True)
        data.fill(many, messages=1)
        self.report("never matching: younger matchable orphans linked", self.sweep(many)["linked"], 2)
        large = self.migrated("large")
        data.fill(large, deliveries=500, messages=500, padding=1_000_000)
        extra = (self.sweep(large)["memory"] - small) / 1024
        self.report("peak memory, 1,000 orphans of 1 MB - 1,000 small, MB", extra, 50, at_most=True)

    def recording(self) -> None:
        """Record sends and webhooks as an application does, beside the same rows written as plain SQL."""
        recording.report(self.migrated("recording"), self.redis_url, self.runs, self.scale, self.report)
        data.drop(self.server, "recording")

    def trigger(self) -> None:
        """Let Postgres explain an INSERT of events that are not orphans: it names the triggers that it called."""
        with psycopg.connect(self.migrated("plain")) as connection:
            row = connection.execute(
                "EXPLAIN (ANALYZE, FORMAT JSON) INSERT INTO mailglass_events (id, tenant_id, type, occurred_at)"
                " SELECT gen_random_uuid(), 't', 'sent', now() FROM generate_series(1, 1000)"
            ).fetchall()[0]
        called = sum(trigger["Calls"] for trigger in row[0][0]["Triggers"])
        self.report("trigger calls for 1,000 events that are not orphans", called, 0, at_most=True)


def _written(connection: psycopg.Connection) -> int:
    """Return how many rows have been written in this database so far, once every session has told."""
    connection.execute("SELECT pg_stat_clear_snapshot()")
    row = connection.execute(
        "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables"
    ).fetchall()[0]
    return int(row[0])


def _listen(redis_url: str) -> None:
    """Subscribe to every channel, and read on in the background: a subscriber that keeps up."""
    url = urlsplit(redis_url)
    connection = socket.create_connection((url.hostname, url.port))
    connection.sendall(b"PSUBSCRIBE mailglass:events:*\r\n")

    def drain() -> None:
        while connection.recv(1 << 18):
            pass

    threading.Thread(target=drain, daemon=True).start()


def main() -> None:
    """Run the benchmark; the exit code is 0 also if a target is missed, because the figures say so."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="take medians of N runs")
    parser.add_argument("--quick", action="store_true", help="a tenth of every size, to try it out")
    options = parser.parse_args()
    with servers.postgres() as server, servers.redis() as redis_url:
        _listen(redis_url)
        with psycopg.connect(server) as connection:
            version = connection.info.server_version
        print(
            f"PostgreSQL {version // 10_000}.{version % 10_000}, Python {platform.python_version()},"
            f" {os.cpu_count()} cores, medians of {options.runs}{', a tenth of every size' * options.quick}"
        )
        bench = Bench(server, redis_url, options.runs, 10 if options.quick else 1)
        bench.speed()
        bench.wide()
        bench.recording()
        bench.trigger()
        bench.nothing_open()
        bench.never_matching()
        os.environ["MAILGLASS_REDIS_URL"] = redis_url
        dispatch.measure(server, bench.report, options.runs, bench.scale)
    print(f"{bench.missed} missed" if bench.missed else "every target met")


if __name__ == "__main__":
    main()
