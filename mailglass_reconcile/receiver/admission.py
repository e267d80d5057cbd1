"""Admission control for the bodies of webhooks: limits on time, number and memory.

Everything runs on the event loop. A waiting body, whether for its own rest or for a thread, can be evicted: its webhook
is answered with 503. A body whose sender has proved a secret is never evicted for one whose sender has not.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from mailglass_reconcile.errors import BodyTooLargeError

PIECE_BYTES = 2_048

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Result = TypeVar("Result")


class MethodNotAllowedError(Exception):
    """The request has another method than a webhook."""


class ForeignHostError(Exception):
    """The request's header `Host` names none of the application's hosts."""


class BodyTimeoutError(Exception):
    """The body did not arrive in time."""


class ClientDisconnectedError(Exception):
    """The client has disconnected."""


class OverloadedError(Exception):
    """The body was evicted, or was not verified in time."""


class IncomingBody:
    """The body of one webhook in flight."""

    def __init__(self, provider: str, *, verified: bool) -> None:
        self.provider, self.verified = provider, verified
        self.size = 0
        self.progress_at: float | None = None
        self.waiting: asyncio.Timeout | None = None
        """The timeout of its current wait, by which it can be evicted; None while it is processed."""
        self.evicted = False


@dataclass(eq=False, kw_only=True)
class AdmissionControl:
    """All bodies in flight, within limits.

    Attributes:
        budget_bytes: Memory for all bodies together.
        body_seconds: Timeout for a body to arrive.
        turn_seconds: Timeout for a complete body to be verified.
        progress_seconds: A body makes progress if a piece of at least `PIECE_BYTES` has arrived within this time.
        max_incomplete: Incomplete bodies; beyond that, the one without progress for longest is evicted.
        max_verified: Complete bodies whose sender has proved a secret; beyond that, the largest waiting one is evicted.
        max_unverified: Complete bodies whose signature is inside; beyond that, the largest of the provider with most of
            them is evicted.
    """

    budget_bytes: int = 64 * 1024 * 1024
    body_seconds: float = 30.0
    turn_seconds: float = 30.0
    progress_seconds: float = 1.0
    max_incomplete: int = 128
    max_verified: int = 80
    max_unverified: int = 80

    def __post_init__(self) -> None:
        """Start without bodies."""
        self._incomplete: dict[IncomingBody, None] = {}
        self._complete: dict[IncomingBody, None] = {}
        self._used_bytes = 0

    @contextmanager
    def admit(self, provider: str, *, verified: bool) -> Iterator[IncomingBody]:
        """Register a new request body, and release it at the end of the block.

        Args:
            provider: The provider's canonical name.
            verified: True if its sender has proved a secret.
        """
        body = IncomingBody(provider, verified=verified)
        self._incomplete[body] = None
        if len(self._incomplete) > self.max_incomplete:
            self._evict(min((other for other in self._incomplete if other is not body), key=self._by_progress))
        try:
            yield body
        finally:
            self._release(body)

    async def read(self, body: IncomingBody, receive: Receive, limit: int) -> bytes:
        """Return the content of a body of at most *limit* bytes, or raise the error that refuses it."""
        try:
            content = await self.wait(body, self.body_seconds, self._read_pieces(body, receive, limit))
        except TimeoutError:
            raise BodyTimeoutError from None
        del self._incomplete[body]
        self._complete[body] = None
        self._limit_complete(body)
        return content

    def mark_verified(self, body: IncomingBody) -> None:
        """Mark a complete body as verified: its sender has proved a secret."""
        body.verified = True
        self._limit_complete(body)

    async def wait(self, body: IncomingBody, seconds: float, awaited: Awaitable[Result]) -> Result:
        """Return the result of *awaited*; while it waits, the body can be evicted."""
        _raise_if_evicted(body)
        try:
            async with asyncio.timeout(seconds) as body.waiting:
                result = await awaited
        except TimeoutError:
            _raise_if_evicted(body)
            raise
        finally:
            body.waiting = None
        _raise_if_evicted(body)
        return result

    async def wait_turn(self, body: IncomingBody, awaited: Awaitable[Result]) -> Result:
        """Return the result of a complete body's *awaited*; raise `OverloadedError` after `turn_seconds`."""
        try:
            return await self.wait(body, self.turn_seconds, awaited)
        except TimeoutError:
            raise OverloadedError from None

    async def _read_pieces(self, body: IncomingBody, receive: Receive, limit: int) -> bytes:
        content, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientDisconnectedError
            piece = message.get("body", b"")
            content += piece
            more = message.get("more_body", False)
            if len(content) > limit:
                raise BodyTooLargeError("the body is too large")
            if len(piece) >= PIECE_BYTES:
                body.progress_at = _now()
            self._used_bytes += len(content) - body.size
            body.size = len(content)
            if self._used_bytes > self.budget_bytes:
                bodies = (*self._incomplete, *self._complete)
                self._evict(min((other for other in bodies if other.waiting), key=self._by_weight))
            _raise_if_evicted(body)
        return bytes(content)

    def _limit_complete(self, body: IncomingBody) -> None:
        """Evict a body if there are too many of its kind, verified or unverified."""
        candidates = [other for other in self._complete if other.verified == body.verified]
        if len(candidates) <= (self.max_verified if body.verified else self.max_unverified):
            return
        if not body.verified:
            ((provider, _),) = Counter(other.provider for other in candidates).most_common(1)
            candidates = [other for other in candidates if other.provider == provider]
        self._evict(max((other for other in candidates if other.waiting or other is body), key=_size, default=body))
        _raise_if_evicted(body)

    def _evict(self, body: IncomingBody) -> None:
        """Evict a body: release its memory now, and end its wait with an `OverloadedError`."""
        body.evicted = True
        self._release(body)
        if body.waiting and not body.waiting.expired():
            body.waiting.reschedule(0)

    def _release(self, body: IncomingBody) -> None:
        for bodies in (self._incomplete, self._complete):
            bodies.pop(body, None)
        self._used_bytes -= body.size
        body.size = 0

    def _by_progress(self, body: IncomingBody) -> tuple[bool, bool, float]:
        return body.verified, self._is_progressing(body), body.progress_at or 0.0

    def _by_weight(self, body: IncomingBody) -> tuple[bool, bool, int]:
        return body.verified, self._is_progressing(body), -body.size

    def _is_progressing(self, body: IncomingBody) -> bool:
        return body.progress_at is not None and _now() - body.progress_at < self.progress_seconds


def _now() -> float:
    return asyncio.get_running_loop().time()


def _size(body: IncomingBody) -> int:
    return body.size


def _raise_if_evicted(body: IncomingBody) -> None:
    if body.evicted:
        raise OverloadedError
