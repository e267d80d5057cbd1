"""Throttle for log lines that strangers, or a provider, could cause by the thousand: one a minute for each key."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

INTERVAL_SECONDS = 60.0
MAX_KEYS = 1_000
"""Keys that are remembered: an application's own messages may be any number."""


class LogThrottle:
    """Limits log lines to one per key and minute; at `MAX_KEYS` keys it forgets all of them."""

    def __init__(self) -> None:
        self._allowed_from: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    def allow(self, key: Hashable) -> bool:
        """Return True at most once a minute for each key."""
        now = time.monotonic()
        with self._lock:
            if now < self._allowed_from.get(key, now):
                return False
            if len(self._allowed_from) >= MAX_KEYS:
                self._allowed_from.clear()
            self._allowed_from[key] = now + INTERVAL_SECONDS
            return True
