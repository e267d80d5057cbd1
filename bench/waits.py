"""What the sessions of a database do, by samples."""

from __future__ import annotations

import threading
from collections import Counter

import psycopg

SAMPLE = """
SELECT wait_event_type, wait_event FROM pg_stat_activity
 WHERE datname = 'run' AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
SAMPLE_SECONDS = 0.05


def _what(kind: str | None, event: str | None) -> str:
    return "run" if kind is None else "wait for Python" if kind == "Client" else f"wait for {kind} {event}"


class Waits:
    """What the sessions in the database `run` do, sampled while the block runs."""

    def __init__(self, server: str) -> None:
        """Ask the server of this URL."""
        self._server, self._found = server, Counter[str]()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        """Stop sampling."""
        self._ends.set()
        self._thread.join()

    def _sample(self) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            while not self._ends.wait(SAMPLE_SECONDS):
                self._found.update(_what(*row) for row in connection.execute(SAMPLE))

    def words(self) -> str:
        """Return what sessions did, by share of the samples, most first."""
        total = sum(self._found.values()) or 1
        return "sessions: " + ", ".join(f"{what} {n / total:.0%}" for what, n in self._found.most_common(4))
