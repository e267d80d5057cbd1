"""Measure latency, idle cost, backlog, inserts and curves, print each figure beside its target, and write them down.

Run as `python -m bench.performance`; name parts to measure only those, as in `python -m bench.performance latency`.
The figures, curves and tables go to `docs/performance.md` and `docs/performance/`; with `--quick`, to a new folder.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from bench import data
from bench.machine import Machine
from bench.performance import backlog, curves, idle, inserts, latency, outage, pages
from bench.performance.figures import Part, medians
from bench.performance.trial import Laboratory
from mailglass_reconcile.testing import servers

DOCS = Path(__file__).parent.parent.parent / "docs"

PARTS: dict[str, Callable[[Laboratory], Part]] = {
    "latency": latency.measure,
    "idle": idle.measure,
    "backlog": backlog.measure,
    "inserts": inserts.measure,
    "curves": curves.measure,
}

QUICK = 20
"""What `--quick` divides every size by."""

DELIVERIES = 100_000
"""In the database that each trial begins with."""


def main() -> None:
    """Run the benchmark; the exit code is 0 also if a target is missed, because the figures say so."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.performance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, outage; all of them if none is named"
    )
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="take medians of N runs of each part")
    parser.add_argument("--quick", action="store_true", help="a twentieth of every size, to try it out")
    options = parser.parse_args()
    names = options.parts or [*PARTS, "outage"]
    if unknown := [name for name in names if name not in (*PARTS, "outage")]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)} and outage")
    servers.exit_on_signals()
    docs = _quick_docs() if options.quick else DOCS
    with servers.postgres_server() as postgres, servers.redis() as redis_url:
        machine = Machine(postgres.url, redis_url, QUICK if options.quick else 1)
        data.fill(machine.migrated("start"), deliveries=DELIVERIES // machine.scale)
        laboratory, about = Laboratory(machine, postgres, "start"), _about(postgres.url, options)
        print(about, flush=True)
        for name in names:
            parts, began = pages.read(docs), time.monotonic()
            print(f"\n{name}", flush=True)
            if name == "outage":
                found = outage.measure({each["name"]: each["value"] for p in parts.values() for each in p["figures"]})
            else:
                found = medians([PARTS[name](laboratory) for _ in range(options.runs)])
            if options.runs > 1:
                print("\n".join([f"{name}, medians", *(figure.line() for figure in found.figures)]), flush=True)
            parts[name] = {
                "command": f"python -m bench.performance{' --quick' * options.quick} {name}",
                "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
                "seconds": round(time.monotonic() - began),
                "machine": about,
                **found.as_dict(),
            }
            pages.write(docs, parts)
    missed = [each["name"] for name in names for each in parts[name]["figures"] if each["verdict"] == "MISSED"]
    print(f"\n{len(missed)} missed: {'; '.join(missed)}" if missed else "\nevery target met")
    print(f"written to {docs}/performance.md and {docs}/performance/")


def _quick_docs() -> Path:
    """Return a new folder for figures that nobody should quote."""
    docs = Path(tempfile.mkdtemp(prefix="mailglass-performance-"))
    shutil.copy(DOCS / "performance.md", docs)
    return docs


def _about(server: str, options: argparse.Namespace) -> str:
    with psycopg.connect(server) as connection:
        version = connection.info.server_version
    runs = f"medians of {options.runs}" if options.runs > 1 else "one run"
    return (
        f"PostgreSQL {version // 10_000}.{version % 10_000}, Python {platform.python_version()}, {os.cpu_count()} cores"
        f" (load average {os.getloadavg()[0]:.1f} before), {runs}{f', every size divided by {QUICK}' * options.quick}."
    )


if __name__ == "__main__":
    main()
