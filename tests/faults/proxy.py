"""The benchmark's proxy, which drops a connection at a chosen message of the client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from bench.proxy import Pair, Proxy

Fault = Literal["before", "after"]
"""Drop the connection before the message reaches the server, or after the server has answered it."""


class FaultyProxy(Proxy):
    """Drops the connection of the *at*-th message that has *text*, and of the next *times* - 1."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._lock = threading.Lock()
        self._text: bytes = b""
        self._fault: Fault = "before"
        self._at = self._times = 0
        self.seen = 0
        """Messages that held *text* since the proxy was armed."""
        self.dropped = 0

    def arm(self, text: bytes, fault: Fault, at: int, times: int = 1) -> None:
        """Apply *fault* to the *at*-th message from now on (from 1) that has *text*, and to the next *times* - 1."""
        with self._lock:
            self._text, self._fault, self._at, self._times = text, fault, at, times
            self.seen = self.dropped = 0

    def on_message(self, pair: Pair, data: bytes) -> bool:
        """Drop the connection of a matching message now, or once the server has answered."""
        fault = self._fault_of(data)
        if fault == "after":
            pair.losing.set()
        return fault != "before"

    def _fault_of(self, data: bytes) -> Fault | None:
        with self._lock:
            if self._at == 0 or self._text not in data:
                return None
            self.seen += 1
            if self._at <= self.seen < self._at + self._times:
                self.dropped += 1
                return self._fault
            return None


@contextmanager
def postgres_proxy(database_url: str) -> Iterator[tuple[FaultyProxy, str]]:
    """Put a proxy before the server of *database_url*; yield it and the URL through it."""
    proxy = FaultyProxy(database_url)
    proxy.start()
    try:
        yield proxy, proxy.url(database_url)
    finally:
        proxy.close()
