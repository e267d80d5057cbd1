"""One sweep through the public API, in a process of its own; prints its figures as a JSON object."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import mailglass_reconcile
from mailglass_reconcile import runtime

BUFFERS = re.compile(r"Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?")


def count_buffers(engine: sa.Engine, found: list[int]) -> None:
    """Let Postgres explain every statement, and collect the buffers of each plan's top node in *found*."""

    def notice(diagnostic: Any) -> None:
        if buffers := BUFFERS.search(diagnostic.message_primary or ""):
            found.append(sum(int(number or 0) for number in buffers.groups()))

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


def main() -> None:
    """Sweep, and print seconds, wall-clock times, peak memory in KiB, buffers if asked for, and the counts."""
    buffers: list[int] = []
    engine = runtime.get_engine()
    if "--buffers" in sys.argv:
        count_buffers(engine, buffers)
    runtime.get_redis().ping()
    began = time.time()
    result = mailglass_reconcile.reconcile()
    ended = time.time()
    memory = peak_memory()
    figures = {"began": began, "ended": ended, "seconds": ended - began, "memory": memory, "buffers": sum(buffers)}
    print(json.dumps({**figures, **result.as_dict()}))


if __name__ == "__main__":
    main()
