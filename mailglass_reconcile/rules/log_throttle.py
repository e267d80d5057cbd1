"""Lines of the log that strangers, or a provider, could cause by the thousand: one a minute for each subject."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

PAUSE_SECONDS = 60.0
MAX_SUBJECTS = 1_000
"""Subjects that are remembered; an application's own messages may be any number."""


class Pauses:
    """Knows what was logged a moment ago."""

    def __init__(self) -> None:
        self._next: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    def over(self, subject: Hashable) -> bool:
        """Whether a line about a subject may be logged now; then the next one may be in a minute."""
        now = time.monotonic()
        with self._lock:
            if now < self._next.get(subject, now):
                return False
            if len(self._next) >= MAX_SUBJECTS:
                self._next.clear()
            self._next[subject] = now + PAUSE_SECONDS
            return True
