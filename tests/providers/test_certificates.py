"""Fetching certificates, which any stranger can trigger: it is rare, and delays nobody else."""

import threading
import time
from concurrent.futures import wait
from itertools import pairwise

import pytest

import senders
from mailglass_reconcile import MailglassReconcileError
from mailglass_reconcile.providers import certificates, sns
from mailglass_reconcile.providers.certificates import CertificateCache, CertificateSource, UnavailableError
from mailglass_reconcile.webhooks import verify
from senders import ARN, NOW, Posted, notification
from waiting import wait_until

pytestmark = pytest.mark.version_independent


class FakeSource:
    """Counts the fetches, and blocks each until it may continue."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.names, self.times, self.at_once, self.most = [], [], 0, 0
        self.may = threading.Event()
        self._failure, self._lock = failure, threading.Lock()

    def source(self, name: str) -> CertificateSource:
        """Return a source whose certificate is its name."""

        def load():
            with self._lock:
                self.names.append(name)
                self.times.append(time.monotonic())
                self.at_once += 1
                self.most = max(self.most, self.at_once)
            assert self.may.wait(20)
            with self._lock:
                self.at_once -= 1
            if self._failure:
                raise self._failure
            return name

        return CertificateSource(name, load)


def test_a_missing_certificate_is_an_error_and_a_fetched_one_is_kept():
    """A caller may wait for it; one that is needed now is fetched before queued ones."""
    cache, fetching = CertificateCache(), FakeSource()
    fetching.may.set()
    with pytest.raises(UnavailableError, match="try again"):
        cache.get("a")
    for _ in range(2):
        cache.wait(fetching.source("a"))
        cache.load(fetching.source("b"))
    cache.wait(None)
    assert (cache.get("a"), cache.get("b"), "c" in cache) == ("a", "b", False)
    assert fetching.names == ["a", "b"]


def test_two_threads_fetch_and_end_when_nothing_waits():
    """Each certificate is fetched once, however many callers wait for it."""
    cache, fetching = CertificateCache(), FakeSource()
    all_ = [cache.schedule_fetch(fetching.source(f"{n}")) for n in range(10) for _ in range(5)]
    wait_until(lambda: fetching.at_once == 2)
    fetching.may.set()
    assert not wait(all_, timeout=20).not_done
    assert (fetching.most, sorted(fetching.names)) == (2, [f"{n}" for n in range(10)])
    assert [cache.get(f"{n}") for n in range(10)] == [f"{n}" for n in range(10)]
    wait_until(lambda: not [item for item in threading.enumerate() if item.name == "mailglass-certificates"])


def test_a_certificate_is_fetched_although_no_thread_could_be_started_before(monkeypatch):
    """A container has a limit of processes; a thread that did not start was once counted as one that fetches."""
    cache, fetching = CertificateCache(), FakeSource()
    fetching.may.set()
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread is left")))
    for _ in range(certificates.THREADS):
        with pytest.raises(RuntimeError, match="no thread"):
            cache.schedule_fetch(fetching.source("a"))
    monkeypatch.setattr(threading.Thread, "start", start)
    cache.wait(fetching.source("a"))
    assert cache.get("a") == "a"


def test_of_a_thousand_requests_at_once_as_many_wait_as_there_are_places():
    """Django's view lets strangers name any number of certificates; each waited in memory, for hours."""
    cache, fetching = CertificateCache(), FakeSource()
    for number in range(certificates.MAX_QUEUED):
        cache.schedule_fetch(fetching.source(f"{number}"))
    for _ in range(1_000 - certificates.MAX_QUEUED):
        with pytest.raises(UnavailableError, match="too many"):
            cache.schedule_fetch(fetching.source("another"))
    fetching.may.set()
    wait_until(lambda: f"{certificates.MAX_QUEUED - 1}" in cache or len(fetching.names) == certificates.MAX_QUEUED)
    cache.wait(fetching.source("another"))


def test_after_ten_failures_fetches_are_throttled(monkeypatch):
    """Strangers could name one missing certificate after the other."""
    monkeypatch.setattr(certificates, "THROTTLE_SECONDS", 0.3)
    cache, fetching = CertificateCache(), FakeSource(OSError("not there"))
    fetching.may.set()
    for number in range(100):
        cache.schedule_fetch(fetching.source(f"{number}"))
    wait_until(lambda: len(fetching.times) >= 15)
    slow = fetching.times[12:15]
    assert all(later - earlier > 0.25 for earlier, later in pairwise(slow))
    cache._queue.clear()


def test_the_next_fetch_is_chosen_at_random(monkeypatch):
    """The first ones in the queue could all be a stranger's."""
    monkeypatch.setattr(certificates, "FAILURES", 2)
    orders = set()
    for _ in range(5):
        cache, fetching = CertificateCache(), FakeSource()
        all_ = [cache.schedule_fetch(fetching.source(f"{number}")) for number in range(20)]
        fetching.may.set()
        assert not wait(all_, timeout=20).not_done
        orders.add(tuple(fetching.names[2:]))
    assert len(orders) > 1


def test_a_cancelled_fetch_costs_nothing(monkeypatch):
    """It is removed from the queue."""
    cache, fetching = CertificateCache(), FakeSource()
    first = [cache.schedule_fetch(fetching.source(name)) for name in ("a", "b")]
    wait_until(lambda: fetching.at_once == 2)
    assert cache.schedule_fetch(fetching.source("c")).cancel()
    fetching.may.set()
    assert not wait(first, timeout=20).not_done
    wait_until(lambda: not cache._threads)
    assert sorted(fetching.names) == ["a", "b"]


def test_a_function_that_waits_for_a_certificate_gives_up_after_five_seconds(monkeypatch):
    """The error has no address; SNS sends the webhook again."""
    monkeypatch.setattr(certificates, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(sns, "certificates", CertificateCache())
    may = threading.Event()
    monkeypatch.setattr(sns, "fetch", lambda url: may.wait(20) and senders.serve_certificate(url))
    request = notification("ses", {"Type": "Notification", "Message": "{}"})
    with pytest.raises(MailglassReconcileError, match="try again"):
        check(request)
    may.set()
    wait_until(lambda: not sns.certificates._threads)
    check(request)


def check(request: Posted) -> None:
    """Verify a notification."""
    verify("ses", request.body, request.headers, secret=ARN, now=NOW)
