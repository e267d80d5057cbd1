"""Fetching certificates, which any stranger can ask for: never often, and never at the cost of others."""

import threading
import time
from concurrent.futures import wait
from itertools import pairwise

import pytest

import senders
from mailglass_reconcile import MailglassReconcileError
from mailglass_reconcile.webhooks import certificates, sns, verify
from mailglass_reconcile.webhooks.certificates import CertificateCache, CertificateSource, UnavailableError
from senders import ARN, NOW, Posted, notification
from waiting import wait_until


class Fetching:
    """Counts what is fetched, and lets nothing go on until it may."""

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


def test_a_certificate_that_was_not_fetched_is_an_error_and_one_that_was_is_not_fetched_again():
    """Whoever waits for it; and one that is needed now is fetched whatever else waits."""
    some, fetching = CertificateCache(), Fetching()
    fetching.may.set()
    with pytest.raises(UnavailableError, match="try again"):
        some.get("a")
    for _ in range(2):
        some.wait(fetching.source("a"))
        some.load(fetching.source("b"))
    some.wait(None)
    assert (some.get("a"), some.get("b"), "c" in some) == ("a", "b", False)
    assert fetching.names == ["a", "b"]


def test_two_threads_fetch_and_end_when_nothing_waits():
    """However many certificates are asked for; each is fetched once, however many wait for it."""
    some, fetching = CertificateCache(), Fetching()
    all_ = [some.schedule_fetch(fetching.source(f"{n}")) for n in range(10) for _ in range(5)]
    wait_until(lambda: fetching.at_once == 2)
    fetching.may.set()
    assert not wait(all_, timeout=20).not_done
    assert (fetching.most, sorted(fetching.names)) == (2, [f"{n}" for n in range(10)])
    assert [some.get(f"{n}") for n in range(10)] == [f"{n}" for n in range(10)]
    wait_until(lambda: not [item for item in threading.enumerate() if item.name == "mailglass-certificates"])


def test_after_ten_failures_there_is_a_pause_before_each_try(monkeypatch):
    """Strangers could name certificates that are not there, one after the other."""
    monkeypatch.setattr(certificates, "THROTTLE_SECONDS", 0.3)
    some, fetching = CertificateCache(), Fetching(OSError("not there"))
    fetching.may.set()
    for number in range(100):
        some.schedule_fetch(fetching.source(f"{number}"))
    wait_until(lambda: len(fetching.times) >= 15)
    slow = fetching.times[12:15]
    assert all(later - earlier > 0.25 for earlier, later in pairwise(slow))
    some._queue.clear()


def test_what_is_tried_is_drawn_at_random(monkeypatch):
    """The first of those that wait could be all of a stranger's."""
    monkeypatch.setattr(certificates, "FAILURES", 2)
    orders = set()
    for _ in range(5):
        some, fetching = CertificateCache(), Fetching()
        all_ = [some.schedule_fetch(fetching.source(f"{number}")) for number in range(20)]
        fetching.may.set()
        assert not wait(all_, timeout=20).not_done
        orders.add(tuple(fetching.names[2:]))
    assert len(orders) > 1


def test_who_no_longer_waits_costs_nothing(monkeypatch):
    """It is forgotten, and not fetched."""
    some, fetching = CertificateCache(), Fetching()
    first = [some.schedule_fetch(fetching.source(name)) for name in ("a", "b")]
    wait_until(lambda: fetching.at_once == 2)
    assert some.schedule_fetch(fetching.source("c")).cancel()
    fetching.may.set()
    assert not wait(first, timeout=20).not_done
    wait_until(lambda: not some._threads)
    assert sorted(fetching.names) == ["a", "b"]


def test_a_function_that_waits_for_a_certificate_gives_up_after_five_seconds(monkeypatch):
    """With a line that names no address; SNS sends the webhook again."""
    monkeypatch.setattr(certificates, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(sns, "certificates", CertificateCache())
    may = threading.Event()
    monkeypatch.setattr(sns, "fetch", lambda url: may.wait(20) and senders.published(url))
    one = notification("ses", {"Type": "Notification", "Message": "{}"})
    with pytest.raises(MailglassReconcileError, match="try again"):
        check(one)
    may.set()
    wait_until(lambda: not sns.certificates._threads)
    check(one)


def check(one: Posted) -> None:
    """Verify a notification."""
    verify("ses", one.body, one.headers, secret=ARN, now=NOW)
