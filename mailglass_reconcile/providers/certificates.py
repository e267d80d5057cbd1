"""The one store of signing certificates, whichever way a webhook comes in.

Anybody who knows a topic can name certificates that do not exist. So a process waits only a little for certificates
that have verified nothing before; those that have are stored by their addresses, fetched first, and waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mailglass_reconcile.errors import MailglassReconcileError

if TYPE_CHECKING:
    from cryptography import x509

THREADS = 4
"""Certificates that are fetched at once."""
SLICE_SECONDS = 0.1
"""Seconds that a webhook takes at a time of those for certificates that are not stored, so that others can wait too."""
LOAD_SECONDS = 5.0
"""Least seconds between two readings of the stored addresses: another process may have stored one."""
MAX_CERTIFICATES = 32


class UnavailableError(MailglassReconcileError):
    """A certificate, or the service that publishes it, cannot be reached now; a retry may succeed."""


class CertificateSource(NamedTuple):
    """The address of a certificate, and the function that fetches and validates it."""

    url: str
    load: Callable[[], x509.Certificate]


class AddressBook(Protocol):
    """Where the addresses of certificates that have verified a webhook are stored; called in a thread of the store."""

    def load(self) -> Iterable[CertificateSource]:
        """Return the stored sources; raises nothing."""

    def add(self, url: str) -> bool:
        """Store an address; return False if that has failed."""


class _Named(NamedTuple):
    source: CertificateSource
    times: int
    last_at: float


@dataclass(eq=False, kw_only=True)
class CertificateStore:
    """The certificates that were fetched, and the addresses of those to fetch.

    Attributes:
        wait_seconds: Seconds for which a webhook waits for a certificate whose address is stored.
        unknown_wait_seconds: Seconds a minute for which a process waits for other certificates, all webhooks together.
            Half of them can be used at once, and are regained within a minute.
        failure_seconds: Seconds for which an address that failed is not tried again: SNS's last repetition comes after
            60.
        named_seconds: Seconds after which an address is no longer fetched: SNS has repeated its notification for the
            last time.
        max_named: Addresses to fetch that are kept in memory: strangers can name any number.
    """

    wait_seconds: float = 5.0
    unknown_wait_seconds: float = 5.0
    failure_seconds: float = 55.0
    named_seconds: float = 60.0
    max_named: int = 16_384

    def __post_init__(self) -> None:
        """Start without certificates."""
        self._certificates: dict[str, x509.Certificate] = {}
        self._stored: set[str] = set()
        self._failures: dict[str, tuple[float, type[MailglassReconcileError], str]] = {}
        self._budget, self._budget_at = self.unknown_wait_seconds / 2, time.monotonic()
        self._next_load, self._has_loaded = 0.0, False
        self._named: dict[str, _Named] = {}
        """Addresses to fetch, the one that was named longest ago first."""
        self.start_anew()

    def start_anew(self) -> None:
        """Start without threads, also in a forked child."""
        self._jobs: list[Callable[[], None]] = []
        """Reads and writes of the stored addresses, which come before fetches."""
        self._in_flight: set[str] = set()
        self._threads = 0
        self._changed = threading.Condition()

    def __contains__(self, url: str) -> bool:
        """Return True if a certificate has been fetched."""
        return url in self._certificates

    def get(self, url: str) -> x509.Certificate:
        """Return a certificate that has been fetched.

        Raises:
            UnavailableError: It has not been fetched.
        """
        certificate = self._certificates.get(url)
        if certificate is None:
            raise UnavailableError("the certificate of a notification has not been fetched: try again")
        return certificate

    def require(
        self, source: CertificateSource | None, addresses: AddressBook | None = None, *, may_wait: bool = True
    ) -> None:
        """Return when the certificate of *source* is there; at once for None, or if it is there already.

        Args:
            source: The certificate that a webhook names.
            addresses: The stored addresses: such a certificate is waited for.
            may_wait: False if the calling thread must not wait; the certificate is fetched all the same.

        Raises:
            UnavailableError: It is not there in time, or could not be fetched a moment ago.
            SignatureError: It is not the service's.
        """
        if source is None or source.url in self:
            return
        deadline = time.monotonic() + self.wait_seconds
        with self._changed:
            if addresses is not None:
                self._schedule_load(addresses)
            self._name(source)
            while source.url not in self:
                if failure := self._failure(source.url):
                    _, kind, text = failure
                    raise kind(text)
                seconds = deadline - time.monotonic()
                if seconds <= 0 or not may_wait:
                    raise UnavailableError("the certificate of a notification is not there yet: try again")
                if source.url in self._stored or not (addresses is None or self._has_loaded):
                    self._changed.wait(seconds)
                else:
                    self._wait_within_budget(seconds)

    def prefetch(self, addresses: AddressBook) -> None:
        """Fetch the certificates whose addresses are stored, in the background."""
        with self._changed:
            self._schedule_load(addresses)

    def mark_verified(self, url: str, addresses: AddressBook) -> None:
        """Store the address of a certificate that has verified a webhook, in the background."""
        with self._changed:
            if url not in self._stored:
                self._stored.add(url)
                self._jobs.append(partial(self._add, url, addresses))
                self._start_thread()

    def _wait_within_budget(self, seconds: float) -> None:
        """Wait for a change, for a part of the time that all certificates that are not stored have together."""
        now, size = time.monotonic(), self.unknown_wait_seconds / 2
        self._budget, self._budget_at = min(size, self._budget + (now - self._budget_at) * size / 60), now
        seconds = min(seconds, self._budget, SLICE_SECONDS)
        if seconds < 0.001:
            raise UnavailableError("too many unknown certificates were named within a minute: try again")
        self._budget -= seconds
        self._changed.wait(seconds)
        self._budget += max(0.0, seconds - (time.monotonic() - now))

    def _schedule_load(self, addresses: AddressBook) -> None:
        if time.monotonic() >= self._next_load:
            self._next_load = time.monotonic() + LOAD_SECONDS
            self._jobs.append(partial(self._load, addresses))
            self._start_thread()

    def _name(self, source: CertificateSource) -> None:
        """Enqueue a certificate, or bring it forward; one in flight, or that failed a moment ago, is left alone."""
        if source.url in self or source.url in self._in_flight or self._failure(source.url):
            return
        previous = self._named.pop(source.url, None)
        self._named[source.url] = _Named(source, 1 + (previous.times if previous else 0), time.monotonic())
        if len(self._named) > self.max_named:
            del self._named[next(iter(self._named))]
        self._start_thread()

    def _failure(self, url: str) -> tuple[float, type[MailglassReconcileError], str] | None:
        while self._failures and next(iter(self._failures.values()))[0] < time.monotonic() - self.failure_seconds:
            del self._failures[next(iter(self._failures))]
        return self._failures.get(url)

    def _start_thread(self) -> None:
        if self._threads < THREADS:
            threading.Thread(target=self._work, name="mailglass-certificates", daemon=True).start()
            self._threads += 1  # not before the thread runs, which may not start

    def _work(self) -> None:
        """Read, write and fetch until nothing is left."""
        while job := self._next_job():
            job()

    def _next_job(self) -> Callable[[], None] | None:
        """Return the next job: stored addresses first, then those named most often, of these the one longest ago.

        SNS repeats a notification, so a genuine address is named again, however many a stranger makes up.
        """
        with self._changed:
            if self._jobs:
                return self._jobs.pop(0)
            oldest = time.monotonic() - self.named_seconds
            while self._named and self._named[url := next(iter(self._named))].last_at < oldest:
                del self._named[url]
            if not self._named:
                self._threads -= 1
                return None
            stored = next((self._named[url] for url in self._stored if url in self._named), None)
            source = (stored or max(self._named.values(), key=attrgetter("times"))).source
            del self._named[source.url]
            self._in_flight.add(source.url)
            return partial(self._fetch, source)

    def _fetch(self, source: CertificateSource) -> None:
        certificate = error = None
        try:
            certificate = source.load()
        except MailglassReconcileError as failure:
            error = failure
        except Exception as failure:  # an application's `sns.fetch` may raise anything
            error = UnavailableError(f"a certificate cannot be fetched ({type(failure).__name__}): try again")
        with self._changed:
            self._in_flight.discard(source.url)
            if certificate is not None:
                self._certificates[source.url] = certificate
                while len(self._certificates) > MAX_CERTIFICATES:
                    del self._certificates[next(iter(self._certificates))]
            if error is not None:
                self._failures[source.url] = time.monotonic(), type(error), str(error)
            self._changed.notify_all()

    def _load(self, addresses: AddressBook) -> None:
        sources = list(addresses.load())
        with self._changed:
            self._has_loaded = True
            self._stored.update(source.url for source in sources)
            for source in sources:
                if source.url not in self._named:
                    self._name(source)
            self._changed.notify_all()

    def _add(self, url: str, addresses: AddressBook) -> None:
        if not addresses.add(url):
            with self._changed:
                self._stored.discard(url)
