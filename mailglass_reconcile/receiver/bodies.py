"""The webhooks in hand: how long their bodies may arrive, how much memory they may take, and whose turn it is.

Everything runs on the event loop. A body that waits, for its own rest or for its turn, can be made to give way.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar

BUDGET_BYTES = 64 * 1024 * 1024
"""For all bodies together, of which those that are being parsed count `PARSED` times."""
PARSED = 20
BODY_SECONDS = 30.0
"""How long a body may take to arrive."""
TURN_SECONDS = 30.0
"""How long a whole body waits for its turn."""
ARRIVING = 128
"""Incomplete bodies; if there is one more, the oldest gives way."""
WHOLE = 80
"""Whole bodies; if there is one more, the largest that waits gives way."""
ASIDE = 24
"""Whole bodies that wait for a certificate, and are not counted above; if there is one more, any of them gives way.

With `WHOLE`, this is less than the connections of `mailglass_reconcile.server`: some are always free for others."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Result = TypeVar("Result")


class NotTakenError(Exception):
    """A webhook is not recorded, for a reason that does not lie in what it holds."""


class TooLargeError(NotTakenError):
    """Its body is longer than may be read."""


class TooSlowError(NotTakenError):
    """Its body did not arrive in time."""


class GoneError(NotTakenError):
    """Its client has left."""


class BusyError(NotTakenError):
    """It gave way to others, or its turn did not come."""


class Body:
    """The body of one webhook, as long as it is in hand."""

    size = 0
    waiting: asyncio.Timeout | None = None
    """What can end its waiting; None while it is worked on."""
    gave_way = False


class Bodies:
    """All bodies in hand."""

    def __init__(self) -> None:
        self._arriving: dict[Body, None] = {}
        self._whole: dict[Body, None] = {}
        self._aside: dict[Body, None] = {}
        self._held = 0
        self._verified = _Gate(lambda inside, size: not inside)
        self._parsed = _Gate(self._has_room)

    @contextmanager
    def one_more(self) -> Iterator[Body]:
        """Have one more in hand, of which nothing has arrived."""
        body = Body()
        self._arriving[body] = None
        if len(self._arriving) > ARRIVING:
            self._give_way(next(iter(self._arriving)))
        try:
            yield body
        finally:
            for some in (self._arriving, self._whole, self._aside):
                some.pop(body, None)
            self._release(body)

    async def read(self, body: Body, receive: Receive, most: int) -> bytes:
        """Return a whole body, unless it is too long or too slow, its client leaves, or it gives way to others."""
        try:
            content = await self._wait(body, BODY_SECONDS, self._arrive(body, receive, most))
        except TimeoutError:
            raise TooSlowError from None
        del self._arriving[body]
        self._whole[body] = None
        if len(self._whole) > WHOLE:
            self._give_way(max((one for one in self._whole if one.waiting or one is body), key=_size))
            _stays(body)
        return content

    async def _arrive(self, body: Body, receive: Receive, most: int) -> bytes:
        content, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise GoneError
            content += message.get("body", b"")
            more = message.get("more_body", False)
            if len(content) > most:
                raise TooLargeError
            self._held += len(content) - body.size
            body.size = len(content)
            if self._held > BUDGET_BYTES:
                self._give_way(max((one for one in self._in_hand() if one.waiting), key=_size))
            _stays(body)
        return bytes(content)

    @asynccontextmanager
    async def verifying(self, body: Body) -> AsyncIterator[None]:
        """Wait until no other body is verified; the smallest goes first."""
        async with self._through(self._verified, body, order=body.size):
            yield

    @asynccontextmanager
    async def parsing(self, body: Body) -> AsyncIterator[None]:
        """Wait until what is made of a body fits into the budget, or no other is parsed; the first goes first."""
        async with self._through(self._parsed, body, order=0):
            yield

    async def aside(self, body: Body, wait: Callable[[], Awaitable[Result]]) -> Result:
        """Wait for something that strangers can delay; other bodies do not wait for these."""
        del self._whole[body]
        self._aside[body] = None
        if len(self._aside) > ASIDE:
            self._give_way(random.choice([*self._aside]))  # noqa: S311 - so that no client can choose which one that is
            _stays(body)
        found = await self._wait(body, TURN_SECONDS, wait())
        del self._aside[body]
        self._whole[body] = None
        return found

    @asynccontextmanager
    async def _through(self, gate: _Gate, body: Body, order: int) -> AsyncIterator[None]:
        size = body.size
        turn = gate.turn(size, order)
        try:
            try:
                await self._wait(body, TURN_SECONDS, turn)
            except TimeoutError:
                raise BusyError from None
            yield
        finally:
            gate.leave(size, turn)

    async def _wait(self, body: Body, seconds: float, awaited: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(seconds) as body.waiting:
                found = await awaited
        except TimeoutError:
            _stays(body)
            raise
        finally:
            body.waiting = None
        _stays(body)
        return found

    def _give_way(self, body: Body) -> None:
        """End a body's waiting; what it held is free from now on."""
        body.gave_way = True
        self._release(body)
        if body.waiting and not body.waiting.expired():
            body.waiting.reschedule(0)

    def _release(self, body: Body) -> None:
        self._held -= body.size
        body.size = 0
        self._parsed.admit()

    def _in_hand(self) -> Iterator[Body]:
        yield from (*self._arriving, *self._whole, *self._aside)

    def _has_room(self, inside: list[int], size: int) -> bool:
        return not inside or self._held + (PARSED - 1) * (sum(inside) + size) <= BUDGET_BYTES


def _size(body: Body) -> int:
    return body.size


def _stays(body: Body) -> None:
    if body.gave_way:
        raise BusyError


class _Gate:
    """Lets bodies in while they fit; those outside come in by their order, and then by their time."""

    def __init__(self, fits: Callable[[list[int], int], bool]) -> None:
        """Let a body in if it *fits*, given the sizes of those inside and its own."""
        self._fits = fits
        self._inside: list[int] = []
        self._outside: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._numbers = count()

    def turn(self, size: int, order: int) -> asyncio.Future[None]:
        """Return what is done when a body is let in."""
        turn = asyncio.get_running_loop().create_future()
        heappush(self._outside, (order, next(self._numbers), size, turn))
        self.admit()
        return turn

    def leave(self, size: int, turn: asyncio.Future[None]) -> None:
        """Let a body out, which may still be outside."""
        if turn.done() and not turn.cancelled():
            self._inside.remove(size)
        turn.cancel()
        self.admit()

    def admit(self) -> None:
        """Let in who fits by now."""
        while self._outside:
            _, _, size, turn = self._outside[0]
            if not turn.done() and not self._fits(self._inside, size):
                return
            heappop(self._outside)
            if not turn.done():
                self._inside.append(size)
                turn.set_result(None)
