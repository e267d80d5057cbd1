"""One process of the load generator: `python -m bench.performance.load`, with the database in the environment.

It says `ready` when it has connected and warmed up, reads the time of the start from its input, prints what it did as
JSON, and ends with its input. Each thread takes the next transaction that is due; what is due and finds no thread free
is late.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
import threading
import time
from typing import Any

from bench.performance.figures import percentile
from bench.performance.plan import Job, Load, plan
from bench.performance.writers import WRITERS, Inserter, Recorder

THREADS = 12
WARM_MESSAGES = 2 * THREADS


class Generator:
    """Works through a plan with a few threads, and notes when each transaction had committed."""

    def __init__(self, writer: Recorder | Inserter, jobs: list[Job]) -> None:
        """Take the jobs in their order."""
        self._writer, self._jobs = writer, iter(jobs)
        self._lock = threading.Lock()
        self.sends: dict[int, float] = {}
        self.events: list[tuple[str, int, float, float]] = []
        """Each event's id, its message, and when it was written and committed."""
        self.late: list[float] = []
        self.errors: list[str] = []

    def run(self, start: float) -> None:
        """Work until nothing is left; *start* is of the monotonic clock."""
        threads = [threading.Thread(target=self._work, args=[start]) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, start: float) -> None:
        while True:
            with self._lock:
                job = next(self._jobs, None)
            if job is None:
                return
            time.sleep(max(0.0, start + job.at - time.monotonic()))
            self.late.append(time.monotonic() - start - job.at)
            try:
                self._send(job) if job.kind == "send" else self._event(job)
            except Exception as error:  # reported; the run does not count
                self.errors.append(f"{type(error).__name__}: {error}"[:300])

    def _send(self, job: Job) -> None:
        def committed() -> None:
            self.sends[job.message] = time.monotonic()

        with self._writer.send(job.message, committed):
            _stay_open(job)

    def _event(self, job: Job) -> None:
        written = 0.0

        def committed(event_id: str) -> None:
            self.events.append((event_id, job.message, written, time.monotonic()))

        # The provider's clock: the two events of a message are never of one moment.
        at = dt.datetime.now(dt.UTC).replace(microsecond=(job.message * 2 + job.number) % 1_000_000)
        with self._writer.event(job.message, job.number, at, committed):
            written = time.monotonic()
            _stay_open(job)


def _stay_open(job: Job) -> None:
    if job.open_seconds:
        time.sleep(job.open_seconds)


def main() -> None:
    """Warm up, wait for the start, work, and print what happened."""
    parser = argparse.ArgumentParser()
    parser.add_argument("writer", choices=WRITERS)
    parser.add_argument("--load", type=json.loads, help="what makes a Load, as JSON")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args()
    url, load = os.environ["MAILGLASS_DATABASE_URL"], Load(**options.load)
    warm = Load(f"{load.run}/warm-{options.part}", WARM_MESSAGES, 1e9, "warm")
    Generator(WRITERS[options.writer](url, warm, THREADS), plan(warm, 0, 1)).run(time.monotonic())
    generator = Generator(WRITERS[options.writer](url, load, THREADS), plan(load, options.part, options.parts))
    print("ready", flush=True)
    generator.run(float(sys.stdin.readline()))
    figures: dict[str, Any] = {
        "sends": list(generator.sends.items()),
        "events": generator.events,
        "late": percentile(generator.late, 99),
        "errors": generator.errors[:3],
    }
    print(json.dumps(figures), flush=True)
    sys.stdin.readline()  # until this process and its sessions have been looked at


if __name__ == "__main__":
    main()
