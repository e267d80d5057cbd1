"""One sweep in a process of its own; prints its figures as a JSON object.

Arguments: `--buffers`, `--tenant ID`, and the bounds of arrival `--after TIME` and `--until TIME`.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.rivals import backend_seconds
from mailglass_reconcile import runtime
from mailglass_reconcile.sweep import full

BUFFERS = re.compile(r"Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?")


def count_buffers(engine: sa.Engine, found: list[int], tell: Callable[[str], None] = lambda said: None) -> None:
    """Let Postgres explain every statement, and collect the buffers of each plan's top node in *found*.

    *tell* is called with what it says of each such plan.
    """

    def notice(diagnostic: Any) -> None:
        said = diagnostic.message_primary or ""
        if buffers := BUFFERS.search(said):
            found.append(sum(int(number or 0) for number in buffers.groups()))
            tell(said)

    @sa.event.listens_for(engine, "connect")
    def explain(connection: Any, record: Any) -> None:
        connection.add_notice_handler(notice)
        cursor = connection.cursor()
        cursor.execute(
            "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on;"
            " SET auto_explain.log_buffers = on; SET auto_explain.log_level = notice"
        )
        connection.commit()


def peak_memory() -> int:
    """Return this process's peak memory in KiB; `ru_maxrss` would count the parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def count_backend(engine: sa.Engine, found: list[float]) -> None:
    """Collect in *found* the CPU seconds of each backend that *engine* talks to, when its connection closes."""

    @sa.event.listens_for(engine, "close")
    def close(connection: Any, record: Any) -> None:
        found.append(backend_seconds(connection.info.backend_pid))


def python_seconds() -> float:
    """Return this process's CPU seconds so far."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


def main() -> None:
    """Sweep, and print seconds, wall-clock times, CPU seconds, peak memory in KiB, buffers, and the counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--buffers", action="store_true")
    parser.add_argument("--tenant")
    parser.add_argument("--after")
    parser.add_argument("--until")
    options = parser.parse_args()
    buffers: list[int] = []
    backends: list[float] = []
    engine = runtime.get_engine()
    count_backend(engine, backends)
    if options.buffers:
        count_buffers(engine, buffers)
    runtime.get_redis().ping()
    spent, began = python_seconds(), time.time()
    result = full.prepare(options.tenant, bounds=(options.after, options.until)).run(engine)
    ended = time.time()
    figures = {
        "began": began,
        "ended": ended,
        "seconds": ended - began,
        "python": python_seconds() - spent,
        "postgres": sum(backends),
        "memory": peak_memory(),
        "buffers": sum(buffers),
    }
    print(json.dumps({**figures, **result.as_dict()}))


if __name__ == "__main__":
    main()
