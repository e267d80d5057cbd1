"""Admission of bodies: which are evicted, and which are not."""

import asyncio
from collections.abc import Callable

import pytest

from mailglass_reconcile.receiver import admission
from mailglass_reconcile.receiver.admission import (
    AdmissionControl,
    BodyTimeoutError,
    BodyTooLargeError,
    OverloadedError,
)

pytestmark = pytest.mark.version_independent

PIECE = bytes(admission.PIECE_BYTES)


class Sender:
    """A client that sends what the test passes."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[dict] = asyncio.Queue()

    def send(self, piece: bytes, *, more: bool = True) -> None:
        """Send a piece of the body."""
        self._messages.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    async def receive(self) -> dict:
        """Receive like an ASGI server."""
        return await self._messages.get()


class Arriving:
    """A body that is read in a task."""

    def __init__(self, bodies: AdmissionControl, provider: str, *, verified: bool = False) -> None:
        self.sender = Sender()
        self.task = asyncio.create_task(self._read(bodies, provider, verified=verified))
        # Otherwise asyncio logs an unretrieved exception in whichever test runs when it is collected.
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _read(self, bodies: AdmissionControl, provider: str, *, verified: bool) -> bytes:
        with bodies.admit(provider, verified=verified) as self.body:
            content = await bodies.read(self.body, self.sender.receive, 10**9)
            await bodies.wait(self.body, 60, asyncio.Event().wait())
        return content

    async def is_evicted(self) -> bool:
        """Return True if the body was evicted, after all tasks have run."""
        await run_all_tasks()
        return self.task.done() and isinstance(self.task.exception(), OverloadedError)


async def run_all_tasks() -> None:
    """Let all tasks run until they wait."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(story: Callable, **limits: float) -> None:
    """Run a story under limits, and cancel its remaining tasks."""

    async def run_and_cancel():
        await story(AdmissionControl(**limits))
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run_and_cancel())


def test_a_body_in_progress_outlives_any_number_that_never_arrive():
    """The oldest used to be evicted, which a large upload is as soon as enough others begin."""

    async def story(bodies):
        large = Arriving(bodies, "sendgrid")
        for _ in range(5):
            large.sender.send(PIECE)
            await run_all_tasks()
            idle = [Arriving(bodies, "sendgrid") for _ in range(3)]
            assert [await incoming.is_evicted() for incoming in idle] == [True, True, False]
            idle[-1].sender.send(b"x")
            await run_all_tasks()
        assert not await large.is_evicted()
        assert large.body.size == 5 * len(PIECE)

    run(story, max_incomplete=2, progress_seconds=60.0)


def test_a_stalled_body_is_evicted_before_one_in_progress(monkeypatch):
    """A piece counts as progress for a second only."""
    now = 0.0
    monkeypatch.setattr(admission, "_now", lambda: now)

    async def story(bodies):
        nonlocal now
        stalled, goes_on = Arriving(bodies, "sendgrid"), Arriving(bodies, "sendgrid")
        stalled.sender.send(PIECE)
        await run_all_tasks()
        now = 2.0
        goes_on.sender.send(PIECE)
        await run_all_tasks()
        Arriving(bodies, "sendgrid")
        assert (await stalled.is_evicted(), await goes_on.is_evicted()) == (True, False)

    run(story, max_incomplete=2)


def test_a_body_with_the_right_password_is_not_evicted_for_one_without():
    """Neither the number of bodies nor the memory evicts it, however large it is."""

    async def story(bodies):
        right = Arriving(bodies, "postmark", verified=True)
        right.sender.send(bytes(90_000), more=False)
        arriving = Arriving(bodies, "postmark", verified=True)
        await run_all_tasks()
        strangers = [Arriving(bodies, "sendgrid") for _ in range(4)]
        await run_all_tasks()
        for stranger in strangers:
            stranger.sender.send(bytes(8_000))
        assert [await stranger.is_evicted() for stranger in strangers] == [True, True, True, False]
        assert [await incoming.is_evicted() for incoming in (right, arriving)] == [False, False]

    run(story, max_incomplete=3, budget_bytes=100_000)


def test_whole_unverified_bodies_are_counted_per_provider():
    async def story(bodies):
        verified, of_other_provider = Arriving(bodies, "sendgrid"), Arriving(bodies, "ses")
        for arriving, size in ((verified, 50_000), (of_other_provider, 40_000)):
            arriving.sender.send(bytes(size), more=False)
        await run_all_tasks()
        bodies.mark_verified(verified.body)
        of_mailgun = [Arriving(bodies, "mailgun") for _ in range(4)]
        for arriving, size in zip(of_mailgun, (17_000, 19_000, 16_000, 18_000), strict=True):
            arriving.sender.send(bytes(size), more=False)
            await run_all_tasks()
        assert [await incoming.is_evicted() for incoming in of_mailgun] == [False, True, False, True]
        assert [await incoming.is_evicted() for incoming in (verified, of_other_provider)] == [False, False]

    run(story, max_unverified=3)


def test_a_body_is_too_large_as_soon_as_more_than_its_limit_has_arrived():
    async def story(bodies):
        sender = Sender()
        sender.send(bytes(60))
        sender.send(bytes(60))
        with bodies.admit("postmark", verified=True) as body, pytest.raises(BodyTooLargeError):
            await asyncio.wait_for(bodies.read(body, sender.receive, 100), 60)

    run(story)


def test_the_memory_of_a_body_is_free_again_when_it_is_done():
    async def story(bodies):
        for _ in range(3):
            arriving = Arriving(bodies, "postmark", verified=True)
            arriving.sender.send(bytes(60_000), more=False)
            assert not await arriving.is_evicted()
            arriving.task.cancel()
            await run_all_tasks()

    run(story, budget_bytes=100_000)


def test_a_body_that_never_arrives_ends_with_its_timeout():
    async def story(bodies):
        arriving = Arriving(bodies, "postmark")
        with pytest.raises(BodyTimeoutError):
            await asyncio.wait_for(arriving.task, 60)

    run(story, body_seconds=0.01)
