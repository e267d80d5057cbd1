"""Admission: how long the bodies of webhooks may arrive and wait, how many and how large they may be together.

Everything runs on the event loop. A body that waits, for its own rest or for something else, can be evicted: its
webhook is answered with 503. One whose sender has proved a secret is not evicted for one whose sender has not.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

BUDGET_BYTES = 64 * 1024 * 1024
"""For all bodies together."""
BODY_SECONDS = 30.0
"""How long a body may take to arrive."""
TURN_SECONDS = 30.0
"""How long a whole body waits to be checked."""
PIECE_BYTES = 2_048
PROGRESS_SECONDS = 1.0
"""A body is in progress if a piece of this length has arrived within this time."""
ARRIVING = 128
"""Incomplete bodies; if there is one more, one is evicted: without progress first, for longest first."""
VERIFIED = 80
"""Whole bodies whose sender has proved a secret; if there is one more, the largest that waits is evicted."""
UNVERIFIED = 80
"""Whole bodies whose signature stands inside; if there is one more, the provider with most loses its largest."""
WANTING = 24
"""Whole bodies that wait for a certificate; if there is one more, any of them is evicted.

With `UNVERIFIED`, this is less than the connections of `mailglass_reconcile.server`: some are always free."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Result = TypeVar("Result")


class NotAdmittedError(Exception):
    """A webhook is not recorded, for a reason that does not lie in what it holds."""


class TooLargeError(NotAdmittedError):
    """Its body is longer than may be read."""


class TooSlowError(NotAdmittedError):
    """Its body did not arrive in time."""


class GoneError(NotAdmittedError):
    """Its client has left."""


class BusyError(NotAdmittedError):
    """It was evicted, or its turn did not come."""


class Body:
    """The body of one webhook in flight."""

    def __init__(self, provider: str, *, verified: bool) -> None:
        self.provider, self.verified = provider, verified
        self.size = 0
        self.progress_at: float | None = None
        self.waiting: asyncio.Timeout | None = None
        """What can end its waiting; None while it is worked on."""
        self.evicted = False

    def is_progressing(self) -> bool:
        return self.progress_at is not None and _now() - self.progress_at < PROGRESS_SECONDS


class Admission:
    """All bodies in flight."""

    def __init__(self) -> None:
        self._arriving: dict[Body, None] = {}
        self._whole: dict[Body, None] = {}
        self._wanting: dict[Body, None] = {}
        self._held = 0

    @contextmanager
    def admit(self, provider: str, *, verified: bool) -> Iterator[Body]:
        """Register a body of which nothing has arrived.

        Args:
            provider: The provider's canonical name.
            verified: Whether its sender has proved a secret.
        """
        body = Body(provider, verified=verified)
        self._arriving[body] = None
        if len(self._arriving) > ARRIVING:
            self._evict(min((other for other in self._arriving if other is not body), key=_by_progress))
        try:
            yield body
        finally:
            self._release(body)

    async def read(self, body: Body, receive: Receive, most: int) -> bytes:
        """Return a whole body, unless it is too long or too slow, its client leaves, or it is evicted."""
        try:
            content = await self.wait(body, BODY_SECONDS, self._arrive(body, receive, most))
        except TimeoutError:
            raise TooSlowError from None
        del self._arriving[body]
        self._whole[body] = None
        self._limit_whole(body)
        return content

    def mark_verified(self, body: Body) -> None:
        """Note that the sender of a whole body has proved a secret."""
        body.verified = True
        self._limit_whole(body)

    async def wait_for_certificate(self, body: Body, fetched: Awaitable[Result]) -> Result:
        """Wait for a certificate, which strangers can delay: no other body waits for these."""
        del self._whole[body]
        self._wanting[body] = None
        if len(self._wanting) > WANTING:
            self._evict(random.choice([*self._wanting]))  # noqa: S311 - so that no client can choose which one that is
            _require_place(body)
        result = await self.wait(body, TURN_SECONDS, fetched)
        del self._wanting[body]
        self._whole[body] = None
        self._limit_whole(body)
        return result

    async def wait(self, body: Body, seconds: float, awaited: Awaitable[Result]) -> Result:
        """Wait for something; meanwhile the body can be evicted."""
        _require_place(body)
        try:
            async with asyncio.timeout(seconds) as body.waiting:
                result = await awaited
        except TimeoutError:
            _require_place(body)
            raise
        finally:
            body.waiting = None
        _require_place(body)
        return result

    async def _arrive(self, body: Body, receive: Receive, most: int) -> bytes:
        content, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise GoneError
            piece = message.get("body", b"")
            content += piece
            more = message.get("more_body", False)
            if len(content) > most:
                raise TooLargeError
            if len(piece) >= PIECE_BYTES:
                body.progress_at = _now()
            self._held += len(content) - body.size
            body.size = len(content)
            if self._held > BUDGET_BYTES:
                bodies = (*self._arriving, *self._whole, *self._wanting)
                self._evict(min((other for other in bodies if other.waiting), key=_by_weight))
            _require_place(body)
        return bytes(content)

    def _limit_whole(self, body: Body) -> None:
        """Evict one if there are too many verified bodies, or too many others."""
        others = [other for other in self._whole if other.verified == body.verified]
        if len(others) <= (VERIFIED if body.verified else UNVERIFIED):
            return
        if not body.verified:
            ((most, _),) = Counter(other.provider for other in others).most_common(1)
            others = [other for other in others if other.provider == most]
        self._evict(max((other for other in others if other.waiting or other is body), key=_size, default=body))
        _require_place(body)

    def _evict(self, body: Body) -> None:
        """End a body's waiting; what it held is free from now on."""
        body.evicted = True
        self._release(body)
        if body.waiting and not body.waiting.expired():
            body.waiting.reschedule(0)

    def _release(self, body: Body) -> None:
        for bodies in (self._arriving, self._whole, self._wanting):
            bodies.pop(body, None)
        self._held -= body.size
        body.size = 0


def _now() -> float:
    return asyncio.get_running_loop().time()


def _by_progress(body: Body) -> tuple[bool, bool, float]:
    return body.verified, body.is_progressing(), body.progress_at or 0.0


def _by_weight(body: Body) -> tuple[bool, bool, int]:
    return body.verified, body.is_progressing(), -body.size


def _size(body: Body) -> int:
    return body.size


def _require_place(body: Body) -> None:
    if body.evicted:
        raise BusyError
