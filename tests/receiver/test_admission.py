"""Admission of bodies: who is evicted, and who is not."""

import asyncio
from collections.abc import Callable

from mailglass_reconcile.receiver import admission
from mailglass_reconcile.receiver.admission import AdmissionControl, OverloadedError

PIECE = bytes(admission.PIECE_BYTES)


class Sender:
    """A client that sends what the test puts in."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[dict] = asyncio.Queue()

    def send(self, piece: bytes, *, more: bool = True) -> None:
        """Send a piece of the body."""
        self._messages.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    async def receive(self) -> dict:
        """Act as the function `receive` of an ASGI server."""
        return await self._messages.get()


class Arriving:
    """A body that is read in a task."""

    def __init__(self, bodies: AdmissionControl, provider: str, *, verified: bool = False) -> None:
        self.sender = Sender()
        self.task = asyncio.create_task(self._read(bodies, provider, verified=verified))
        # Otherwise asyncio logs an exception that nobody asked for, in whichever test runs when it is collected.
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _read(self, bodies: AdmissionControl, provider: str, *, verified: bool) -> bytes:
        with bodies.admit(provider, verified=verified) as self.body:
            content = await bodies.read(self.body, self.sender.receive, 10**9)
            await bodies.wait(self.body, 60, asyncio.Event().wait())
        return content

    async def evicted(self) -> bool:
        """Return True if the body was evicted, after all tasks have run."""
        await settled()
        return self.task.done() and isinstance(self.task.exception(), OverloadedError)


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(story: Callable) -> None:
    """Run a story, and end what is left of it."""

    async def whole():
        await story(AdmissionControl())
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    asyncio.run(whole())


def test_a_body_in_progress_outlives_any_number_that_never_arrive(monkeypatch):
    """The oldest was evicted, which a large upload is as soon as enough others have begun."""
    monkeypatch.setattr(admission, "MAX_INCOMPLETE", 2)
    monkeypatch.setattr(admission, "PROGRESS_SECONDS", 60.0)

    async def story(bodies):
        large = Arriving(bodies, "sendgrid")
        for _ in range(5):
            large.sender.send(PIECE)
            await settled()
            idle = [Arriving(bodies, "sendgrid") for _ in range(3)]
            assert [await incoming.evicted() for incoming in idle] == [True, True, False]
            idle[-1].sender.send(b"x")
            await settled()
        assert not await large.evicted()
        assert large.body.size == 5 * len(PIECE)

    run(story)


def test_one_that_stopped_is_evicted_before_one_that_goes_on(monkeypatch):
    """A piece makes a body young for a second only."""
    monkeypatch.setattr(admission, "MAX_INCOMPLETE", 2)
    now = 0.0
    monkeypatch.setattr(admission, "_now", lambda: now)

    async def story(bodies):
        nonlocal now
        stopped, goes_on = Arriving(bodies, "sendgrid"), Arriving(bodies, "sendgrid")
        stopped.sender.send(PIECE)
        await settled()
        now = 2.0
        goes_on.sender.send(PIECE)
        await settled()
        Arriving(bodies, "sendgrid")
        assert (await stopped.evicted(), await goes_on.evicted()) == (True, False)

    run(story)


def test_no_body_whose_password_was_right_is_evicted_for_one_without(monkeypatch):
    """Neither for its number nor for the memory, however large it is."""
    monkeypatch.setattr(admission, "MAX_INCOMPLETE", 3)
    monkeypatch.setattr(admission, "BUDGET_BYTES", 100_000)

    async def story(bodies):
        right = Arriving(bodies, "postmark", verified=True)
        right.sender.send(bytes(90_000), more=False)
        arriving = Arriving(bodies, "postmark", verified=True)
        await settled()
        strangers = [Arriving(bodies, "sendgrid") for _ in range(4)]
        await settled()
        for stranger in strangers:
            stranger.sender.send(bytes(8_000))
        assert [await stranger.evicted() for stranger in strangers] == [True, True, True, False]
        assert [await incoming.evicted() for incoming in (right, arriving)] == [False, False]

    run(story)


def test_whole_unverified_bodies_are_counted_per_provider(monkeypatch):
    """The largest of the provider that has most is evicted, and none that is verified."""
    monkeypatch.setattr(admission, "MAX_UNVERIFIED", 3)

    async def story(bodies):
        verified, other = Arriving(bodies, "sendgrid"), Arriving(bodies, "ses")
        for one, size in ((verified, 50_000), (other, 40_000)):
            one.sender.send(bytes(size), more=False)
        await settled()
        bodies.mark_verified(verified.body)
        some = [Arriving(bodies, "mailgun") for _ in range(4)]
        for one, size in zip(some, (17_000, 19_000, 16_000, 18_000), strict=True):
            one.sender.send(bytes(size), more=False)
            await settled()
        assert [await incoming.evicted() for incoming in some] == [False, True, False, True]
        assert [await incoming.evicted() for incoming in (verified, other)] == [False, False]

    run(story)
