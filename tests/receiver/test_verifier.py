"""The one thread that verifies and reads bodies: whose turn it is."""

import asyncio
import threading

import pytest

from mailglass_reconcile.receiver.verifier import VerificationThread


def order(*jobs: tuple[str, int, bool], cancelled: int | None = None) -> list[tuple[str, int, bool]]:
    """Return the order in which jobs run that all wait when the first can run: provider, size and whether verified."""
    ran: list[tuple[str, int, bool]] = []

    async def run():
        verifier, may = VerificationThread(), threading.Event()
        first = verifier.run("first", 0, verified=False, job=may.wait)
        waiting = [verifier.run(job[0], job[1], verified=job[2], job=lambda job=job: ran.append(job)) for job in jobs]
        if cancelled is not None:
            waiting.pop(cancelled).cancel()
        may.set()
        await asyncio.gather(first, *waiting)

    asyncio.run(run())
    return ran


def test_of_one_provider_the_smallest_body_goes_first_and_providers_take_turns():
    """So that many bodies to one provider's address do not delay another's."""
    mandrill, ses = [("mandrill", size, False) for size in (3, 1, 2)], [("ses", size, False) for size in (9, 8)]
    assert order(*mandrill, *ses) == [mandrill[1], ses[1], mandrill[2], ses[0], mandrill[0]]


def test_every_other_body_is_one_that_was_verified():
    """However many wait that were not."""
    strangers, verified = [("mandrill", 1, False)] * 3, [("sendgrid", 100, True)] * 2
    assert order(*strangers, *verified) == [verified[0], strangers[0], verified[0], strangers[0], strangers[0]]


def test_a_job_that_nobody_waits_for_does_not_run():
    """Its body was evicted."""
    assert order(("ses", 1, False), ("ses", 2, False), cancelled=0) == [("ses", 2, False)]


def test_an_error_is_raised_where_the_job_is_awaited():
    """And the thread goes on."""

    def fail():
        raise LookupError

    async def run():
        verifier = VerificationThread()
        with pytest.raises(LookupError):
            await verifier.run("ses", 1, verified=False, job=fail)
        return await verifier.run("ses", 1, verified=False, job=lambda: "ran")

    assert asyncio.run(run()) == "ran"
