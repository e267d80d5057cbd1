"""The store of certificates, which strangers ask for some that do not exist: nobody else is delayed for long."""

import itertools
import threading
import time

import pytest

import senders
from mailglass_reconcile.errors import SignatureError
from mailglass_reconcile.providers import certificates, sns
from mailglass_reconcile.providers.certificates import CertificateSource, CertificateStore, UnavailableError
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.version_independent


class FakeService:
    """Counts the fetches, and lets each wait until it may continue."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.names, self.at_once, self.most = [], 0, 0
        self.may = threading.Event()
        self._failure, self._lock = failure, threading.Lock()

    def source(self, name: str) -> CertificateSource:
        """Return a source whose certificate is its name; those that begin with `missing` fail."""

        def load():
            with self._lock:
                self.names.append(name)
                self.at_once += 1
                self.most = max(self.most, self.at_once)
            assert self.may.wait(PATIENCE)
            with self._lock:
                self.at_once -= 1
            if self._failure and name.startswith("missing"):
                raise self._failure
            return name

        return CertificateSource(name, load)


@pytest.fixture
def service() -> FakeService:
    """Return a service that answers at once when it is told so."""
    return FakeService(UnavailableError("not there: try again"))


def ask(store: CertificateStore, service: FakeService, *names: str) -> None:
    """Name certificates, and wait for none."""
    for name in names:
        with pytest.raises(UnavailableError, match="not there yet"):
            store.require(service.source(name), may_wait=False)


def in_thread(function) -> threading.Thread:
    """Start a thread."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_a_certificate_is_fetched_once_and_one_request_waits_for_it(service):
    """The others are refused at once: their notifications are repeated."""
    store, waited = CertificateStore(), []
    with pytest.raises(UnavailableError, match="try again"):
        store.get("a")
    waiting = in_thread(lambda: waited.append(store.require(service.source("a"))))
    wait_until(lambda: service.at_once)
    for name in ("a", "b") * 5:
        with pytest.raises(UnavailableError, match="not there yet"):
            store.require(service.source(name))
    service.may.set()
    waiting.join(20)
    assert waited == [None]
    store.require(service.source("a"))
    store.require(None)
    wait_until(lambda: not store._threads)
    assert (store.get("a"), sorted(service.names)) == ("a", ["a", "b"])


def test_a_certificate_in_memory_takes_no_lock_and_no_thread(service):
    store = CertificateStore()
    service.may.set()
    store.require(service.source("a"))
    wait_until(lambda: not store._threads)
    with store._changed:
        asking = in_thread(lambda: store.require(service.source("a")))
        asking.join(20)
        assert not asking.is_alive()
    assert not store._threads


def test_four_are_fetched_at_once_and_no_thread_is_left(service):
    store, threads_before = CertificateStore(), set(threading.enumerate())
    ask(store, service, *map(str, range(20)))
    wait_until(lambda: service.at_once == 4)
    service.may.set()
    wait_until(lambda: all(str(number) in store for number in range(20)))
    assert (service.most, sorted(service.names, key=int)) == (4, [*map(str, range(20))])
    threads = [thread for thread in threading.enumerate() if thread not in threads_before]
    wait_until(lambda: not any(thread.is_alive() for thread in threads if thread.name == "mailglass-certificates"))


def test_a_fetch_has_two_seconds(monkeypatch):
    """A server that accepts the connection and says nothing would keep one of four threads."""
    timeouts = []
    monkeypatch.setattr(sns._opener, "open", lambda url, timeout: timeouts.append(timeout) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sns.fetch(senders.CERTIFICATE_URL)
    assert timeouts == [2]


def test_a_process_waits_two_seconds_and_then_for_seven_times_as_long_not_at_all(service):
    """Strangers name a certificate that does not come, again and again; the process is left to its other requests."""
    assert CertificateStore.wait_seconds == 2
    store, names = CertificateStore(wait_seconds=0.1), itertools.count()

    def measure() -> float:
        started_at = time.monotonic()
        with pytest.raises(UnavailableError, match="not there yet"):
            store.require(service.source(f"missing-{next(names)}"))
        return time.monotonic() - started_at

    began_at = time.monotonic()
    waited, refused = measure(), [measure() for _ in range(20)]
    assert (waited >= 0.1, sum(refused) < waited * certificates.IDLE_FACTOR) == (True, True), (waited, refused)
    assert store._next_wait_at >= began_at + 0.1 + 0.1 * certificates.IDLE_FACTOR
    store._next_wait_at = time.monotonic()
    assert measure() >= 0.1
    service.may.set()


def test_an_address_that_failed_is_tried_again_for_the_first_repetition(service):
    """SNS repeats a notification after 20 seconds."""
    service.may.set()
    store = CertificateStore()
    for _ in range(3):
        with pytest.raises(UnavailableError, match="not there: try again"):
            store.require(service.source("missing"))
    assert service.names == ["missing"]
    assert 10 < store.failure_seconds < 20
    store.failure_seconds = 0.0
    with pytest.raises(UnavailableError):
        store.require(service.source("missing"))
    wait_until(lambda: service.names == ["missing"] * 2)


def test_an_error_of_the_signature_or_of_an_own_function_is_remembered_too():
    """Scaleway's authority has not issued it; `sns.fetch` may raise anything, whose text may hold an address."""
    for failure, kind, text in (
        (SignatureError("not issued by Scaleway"), SignatureError, "not issued"),
        (LookupError("c4n4ry"), UnavailableError, r"LookupError\): try again"),
    ):
        service = FakeService(failure)
        service.may.set()
        store = CertificateStore()
        for _ in range(2):
            with pytest.raises(kind, match=text):
                store.require(service.source("missing"))
        assert service.names == ["missing"]


def test_the_newest_is_fetched_first_and_the_oldest_of_64_are_evicted(service):
    """SNS repeats a notification, which makes its certificate the newest again; a stranger makes up names."""
    assert CertificateStore.max_queued == 64
    store = CertificateStore(max_queued=10)
    ask(store, service, *(f"missing-{number}" for number in range(4)))
    wait_until(lambda: service.at_once == 4)
    ask(store, service, "genuine", *(f"missing-{number}" for number in range(4, 13)), "genuine", "missing-13")
    service.may.set()
    wait_until(lambda: not store._threads)
    assert {*service.names[4:6]} == {"missing-13", "genuine"}
    assert len(service.names) == 14
    ask(store, FakeService(), *(f"missing-{number}" for number in range(100, 200)))
    assert len(store._queue) <= 10


def test_a_certificate_is_fetched_although_no_thread_could_be_started_before(monkeypatch, service):
    """A container has a limit of processes; a thread that did not start was once counted as one that fetches."""
    store = CertificateStore()
    service.may.set()
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread is left")))
    for _ in range(certificates.THREADS):
        with pytest.raises(RuntimeError, match="no thread"):
            store.require(service.source("a"))
    monkeypatch.setattr(threading.Thread, "start", start)
    store.require(service.source("a"))
    assert store.get("a") == "a"


def test_a_forked_child_fetches_with_threads_of_its_own(service):
    """The parent's do not exist in it."""
    store = CertificateStore()
    ask(store, service, "a")
    wait_until(lambda: service.at_once == 1)
    store.start_anew()
    service.may.set()
    store.require(service.source("b"))
    assert store.get("b") == "b"
