"""The store of certificates, which any stranger can ask for one: it delays nobody else for long."""

import threading
import time

import pytest

import senders
from mailglass_reconcile import MailglassReconcileError
from mailglass_reconcile.errors import SignatureError
from mailglass_reconcile.providers import certificates, sns
from mailglass_reconcile.providers.certificates import CertificateSource, CertificateStore, UnavailableError
from mailglass_reconcile.webhooks import verify
from senders import ARN, NOW, Posted, notification
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


class FakeBook:
    """Stored addresses in memory."""

    def __init__(self, service: FakeService, *names: str) -> None:
        self._service, self.names, self.loads, self.is_writable = service, [*names], 0, True

    def load(self) -> list[CertificateSource]:
        """Return the sources."""
        self.loads += 1
        return [self._service.source(name) for name in self.names]

    def add(self, url: str) -> bool:
        """Add one."""
        if self.is_writable:
            self.names.append(url)
        return self.is_writable


@pytest.fixture
def service() -> FakeService:
    """Return a service that answers at once when it is told so."""
    return FakeService(UnavailableError("not there: try again"))


def ask(store: CertificateStore, service: FakeService, *names: str, **options) -> None:
    """Name certificates, and wait for none."""
    for name in names:
        with pytest.raises(UnavailableError, match="not there yet"):
            store.require(service.source(name), may_wait=False, **options)


def in_thread(function) -> threading.Thread:
    """Start a thread."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_a_certificate_is_fetched_once_however_many_requests_wait_for_it(service):
    store, ended = CertificateStore(), []
    with pytest.raises(UnavailableError, match="try again"):
        store.get("a")
    for _ in range(10):
        in_thread(lambda: ended.append(store.require(service.source("a"))))
    wait_until(lambda: service.at_once)
    service.may.set()
    wait_until(lambda: len(ended) == 10)
    store.require(service.source("a"))
    store.require(None)
    assert (store.get("a"), service.names) == ("a", ["a"])


def test_four_are_fetched_at_once_and_no_thread_is_left(service):
    store = CertificateStore()
    ask(store, service, *map(str, range(20)))
    wait_until(lambda: service.at_once == 4)
    service.may.set()
    wait_until(lambda: all(str(number) in store for number in range(20)))
    assert (service.most, sorted(service.names, key=int)) == (4, [*map(str, range(20))])
    wait_until(lambda: "mailglass-certificates" not in {thread.name for thread in threading.enumerate()})


def test_a_fetch_has_two_seconds(monkeypatch):
    """A server that accepts the connection and says nothing would keep one of four threads."""
    timeouts = []
    monkeypatch.setattr(sns._opener, "open", lambda url, timeout: timeouts.append(timeout) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sns.fetch(senders.CERTIFICATE_URL)
    assert timeouts == [2]


def test_a_stored_certificate_is_fetched_first_and_waited_for(service):
    """Strangers have named a hundred others, and used up the time that may be waited for those."""
    store, book = CertificateStore(), FakeBook(service, "stored")
    store._budget = 0.0
    ask(store, service, *(f"missing-{number}" for number in range(100)))
    wait_until(lambda: service.at_once == 4)
    threading.Timer(0.2, service.may.set).start()
    store.require(service.source("stored"), book)
    assert (store.get("stored"), "stored" in service.names[:8]) == ("stored", True)


def test_waiting_for_a_stored_certificate_ends_after_five_seconds(service):
    store = CertificateStore(wait_seconds=0.2)
    store._budget = 0.0
    with pytest.raises(UnavailableError, match="not there yet"):
        store.require(service.source("stored"), FakeBook(service, "stored"))
    service.may.set()


def test_all_requests_together_wait_at_most_five_seconds_a_minute_for_what_is_not_stored(service):
    """Of 40 at once, none waits its own five seconds; the next ones are refused at once."""
    assert CertificateStore.unknown_wait_seconds == CertificateStore.wait_seconds == 5
    store, waited = CertificateStore(unknown_wait_seconds=0.8), []

    def name_another(number: int) -> None:
        begun = time.monotonic()
        with pytest.raises(UnavailableError, match="try again"):
            store.require(service.source(f"other-{number}"))
        waited.append(time.monotonic() - begun)

    threads = [in_thread(lambda number=number: name_another(number)) for number in range(40)]
    for thread in threads:
        thread.join()
    assert sum(waited) < 20, "each of them waited"
    begun = time.monotonic()
    name_another(41)
    assert time.monotonic() - begun < 2
    store._budget_at -= 60
    name_another(42)
    assert waited[-1] >= 0.35, "the time is regained within a minute"
    service.may.set()


def test_an_address_that_failed_is_not_tried_again_for_a_minute(service):
    """SNS's last repetition, a minute after the first attempt, tries it again."""
    service.may.set()
    store = CertificateStore(unknown_wait_seconds=1.0)
    for _ in range(3):
        with pytest.raises(UnavailableError, match="not there: try again"):
            store.require(service.source("missing"))
    assert service.names == ["missing"]
    assert 50 <= store.failure_seconds < 60
    store.failure_seconds = 0.0
    with pytest.raises(UnavailableError):
        store.require(service.source("missing"))
    assert service.names == ["missing"] * 2


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


def test_what_is_named_again_is_fetched_before_what_was_named_once(service):
    """SNS repeats a notification; a stranger makes up a name each time."""
    store = CertificateStore()
    ask(store, service, *(f"missing-{number}" for number in range(1_000)), "genuine", "genuine")
    wait_until(lambda: service.at_once == 4)
    service.may.set()
    store.require(service.source("genuine"))
    assert service.names.index("genuine") == 4


def test_what_nobody_has_named_for_a_minute_is_not_fetched(service):
    """Nobody waits for it any more; strangers can leave thousands behind."""
    store = CertificateStore()
    ask(store, service, *(f"missing-{number}" for number in range(100)))
    wait_until(lambda: service.at_once == 4)
    store.named_seconds = 0.0
    service.may.set()
    wait_until(lambda: not store._threads)
    assert len(service.names) == 4


def test_names_are_bounded_and_the_oldest_go(service):
    store = CertificateStore(max_named=10)
    ask(store, service, *(f"missing-{number}" for number in range(100)))
    wait_until(lambda: service.at_once == 4)
    assert len(store._named) <= 10
    service.may.set()
    wait_until(lambda: not store._threads)
    assert "missing-99" in service.names
    assert len(service.names) <= 18


def test_what_is_named_again_stays_when_the_oldest_go(service):
    """A stranger who names thousands a second would otherwise push it out before SNS's second repetition."""
    store = CertificateStore(max_named=10)
    ask(store, service, *(f"missing-{number}" for number in range(4)))
    wait_until(lambda: service.at_once == 4)
    strangers = [f"missing-{number}" for number in range(4, 20)]
    ask(store, service, "genuine", *strangers[:8], "genuine", *strangers[8:])
    service.may.set()
    wait_until(lambda: not store._threads)
    assert "genuine" in service.names


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


def test_an_address_is_stored_once_and_again_if_that_has_failed(service):
    store, book = CertificateStore(), FakeBook(service)
    book.is_writable = False
    store.mark_verified("a", book)
    wait_until(lambda: "a" not in store._stored)
    book.is_writable = True
    for _ in range(3):
        store.mark_verified("a", book)
    wait_until(lambda: book.names == ["a"])
    wait_until(lambda: not store._threads)
    assert book.names == ["a"]


def test_what_another_process_has_stored_meanwhile_is_found(service):
    """The addresses are read again when an unknown one is named, but not for each."""
    store, book = CertificateStore(), FakeBook(service)
    ask(store, service, *map(str, range(50)), addresses=book)
    wait_until(lambda: book.loads == 1)
    service.may.set()
    wait_until(lambda: not store._threads)
    assert book.loads == 1
    store._budget, store._next_load = 0.0, 0.0
    service.may.clear()
    book.names.append("new")
    threading.Timer(0.2, service.may.set).start()
    store.unknown_wait_seconds = 0.2
    store._budget_at -= 60
    store.require(service.source("new"), book)


def test_a_forked_child_fetches_with_threads_of_its_own(service):
    """The parent's do not exist in it."""
    store = CertificateStore()
    ask(store, service, "a")
    wait_until(lambda: service.at_once == 1)
    store.start_anew()
    service.may.set()
    store.require(service.source("b"))
    assert store.get("b") == "b"


def test_verify_waits_for_a_certificate_and_its_error_names_no_address(monkeypatch):
    """SNS sends the webhook again."""
    monkeypatch.setattr(sns, "certificates", CertificateStore())
    sns.certificates._budget = 0.1
    may = threading.Event()
    monkeypatch.setattr(sns, "fetch", lambda url: may.wait(PATIENCE) and senders.serve_certificate(url))
    request = notification("ses", {"Type": "Notification", "Message": "{}"})
    with pytest.raises(MailglassReconcileError, match="try again") as caught:
        check(request)
    assert "https" not in str(caught.value)
    may.set()
    wait_until(lambda: not sns.certificates._threads)
    check(request)


def check(request: Posted) -> None:
    """Verify a notification."""
    verify("ses", request.body, request.headers, secret=ARN, now=NOW)
