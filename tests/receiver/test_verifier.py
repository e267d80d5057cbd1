"""The thread that verifies and reads bodies, and its order."""

import asyncio
import threading
import time

import pytest

from mailglass_reconcile.receiver.verifier import VerificationThread

pytestmark = pytest.mark.version_independent


def order(*jobs: tuple[str, int, bool], cancelled: int | None = None) -> list[tuple[str, int, bool]]:
    """Return the order of jobs, as provider, size and whether verified, that all wait when the first one runs."""
    finished_jobs: list[tuple[str, int, bool]] = []

    async def run():
        verifier, may = VerificationThread(), threading.Event()
        first = verifier.run("first", 0, verified=False, job=may.wait)
        waiting = [
            verifier.run(job[0], job[1], verified=job[2], job=lambda job=job: finished_jobs.append(job)) for job in jobs
        ]
        if cancelled is not None:
            waiting.pop(cancelled).cancel()
        may.set()
        await asyncio.gather(first, *waiting)

    asyncio.run(run())
    return finished_jobs


def test_the_smallest_body_of_a_provider_goes_first_and_providers_take_turns():
    """Many bodies to one provider's URL do not delay another's."""
    mandrill, ses = [("mandrill", size, False) for size in (3, 1, 2)], [("ses", size, False) for size in (9, 8)]
    assert order(*mandrill, *ses) == [mandrill[1], ses[1], mandrill[2], ses[0], mandrill[0]]


def test_every_second_body_is_a_verified_one():
    """The number of unverified ones does not matter."""
    strangers, verified = [("mandrill", 1, False)] * 3, [("sendgrid", 100, True)] * 2
    assert order(*strangers, *verified) == [verified[0], strangers[0], verified[0], strangers[0], strangers[0]]


def test_a_cancelled_job_does_not_run():
    """Its body was evicted."""
    assert order(("ses", 1, False), ("ses", 2, False), cancelled=0) == [("ses", 2, False)]


def test_after_a_job_that_fails_the_thread_idles_for_as_long_as_it_took():
    may, times = threading.Event(), []

    def fail():
        may.wait()
        threading.Event().wait(0.2)
        times.append(time.monotonic())
        raise LookupError

    async def run():
        verifier = VerificationThread()
        failing = verifier.run("ses", 1, verified=False, job=fail)
        waiting = verifier.run("ses", 2, verified=False, job=lambda: times.append(time.monotonic()))
        may.set()
        await asyncio.gather(failing, waiting, return_exceptions=True)

    asyncio.run(run())
    assert times[1] - times[0] >= 0.2


def test_an_error_is_raised_where_the_job_is_awaited():
    """The thread goes on."""

    def fail():
        raise LookupError

    async def run():
        verifier = VerificationThread()
        with pytest.raises(LookupError):
            await verifier.run("ses", 1, verified=False, job=fail)
        return await verifier.run("ses", 1, verified=False, job=lambda: "ran")

    assert asyncio.run(run()) == "ran"
