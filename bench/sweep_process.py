"""One sweep, or one prune, in a process of its own; prints its figures as a JSON object."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import SecretStr

import mailglass_reconcile
from bench.cpu import backend_seconds
from mailglass_reconcile import Settings
from mailglass_reconcile.sweep import reconciler

PLAN = re.compile(r"duration: (?P<ms>[0-9.]+) ms.*?Buffers: shared(?: hit=(?P<hit>\d+))?(?: read=(?P<read>\d+))?", re.S)


def engine_of(url: str) -> sa.Engine:
    """Return an engine like the package's own, which keeps no connection."""
    return sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg"),
        poolclass=sa.NullPool,
        connect_args={"prepare_threshold": None, "client_encoding": "utf8"},
    )


def explain(engine: sa.Engine, collected: list[tuple[float, int]]) -> None:
    """Let Postgres explain every statement; append milliseconds and buffers of each plan to *collected*."""

    def notice(diagnostic: Any) -> None:
        if plan := PLAN.search(diagnostic.message_primary or ""):
            collected.append((float(plan["ms"]), int(plan["hit"] or 0) + int(plan["read"] or 0)))

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.add_notice_handler(notice)
        connection.execute(
            "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on;"
            " SET auto_explain.log_buffers = on; SET auto_explain.log_level = notice"
        )
        connection.commit()


def count_backends(engine: sa.Engine, collected: list[float]) -> None:
    """Append the CPU seconds of each backend of *engine* to *collected* when its connection closes."""

    @sa.event.listens_for(engine, "close")
    def closed(connection: Any, record: Any) -> None:
        collected.append(backend_seconds(connection.info.backend_pid))


def measure_action(action: Callable[[], dict[str, Any]], url: str, *, with_plans: bool = False) -> dict[str, Any]:
    """Call *action* on an engine whose backends are measured, and return its counts and costs."""
    plans: list[tuple[float, int]] = []
    backends: list[float] = []
    engine = engine_of(url)
    count_backends(engine, backends)
    if with_plans:
        explain(engine, plans)
    mailglass_reconcile.configure(engine=engine, settings=Settings(database_url=SecretStr(url)))
    spent, began_at = time.process_time(), time.time()
    counts = action()
    ended_at = time.time()
    return {
        "began": began_at,
        "ended": ended_at,
        "seconds": ended_at - began_at,
        "python": time.process_time() - spent,
        "postgres": sum(backends),
        # `ru_maxrss` would count the parent's memory before exec.
        "memory": int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]),
        "buffers": sum(buffers for _, buffers in plans),
        **counts,
    }


def sweep(url: str) -> dict[str, Any]:
    """Sweep in this process, with its Redis, and return counts and costs."""
    return measure_action(run_sweep, url)


def run_sweep(tenant_id: str | None = None) -> dict[str, Any]:
    """Sweep as the command and the workers do, where the garbage collector pauses; return the counts."""
    return reconciler.prepare(tenant_id, origin="command").run().as_dict()


def main() -> None:
    """Sweep or prune, and print seconds, wall-clock times, CPU seconds, peak memory in KiB, buffers, and counts."""
    parser = argparse.ArgumentParser(prog="python -m bench.sweep_process")
    parser.add_argument("--buffers", action="store_true")
    parser.add_argument("--prune", action="store_true")
    parser.add_argument("--tenant")
    parser.add_argument("--after")
    parser.add_argument("--until")
    options = parser.parse_args()

    if options.after or options.until:
        # A worker gets such a range from a fan-out.
        from mailglass_reconcile import celery, tasks  # noqa: F401, PLC0415 - only ranges need Celery

    def action() -> dict[str, Any]:
        if options.prune:
            return mailglass_reconcile.prune().as_dict()
        if options.after or options.until:
            counts: dict[str, Any] = tasks.reconcile.apply(
                kwargs={"after": options.after, "until": options.until}
            ).get()
            return counts
        return run_sweep(options.tenant)

    print(
        json.dumps(
            measure_action(action, os.environ["MAILGLASS_DATABASE_URL"], with_plans=options.buffers), default=str
        )
    )


if __name__ == "__main__":
    main()
