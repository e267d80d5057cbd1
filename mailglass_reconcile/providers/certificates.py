"""The one store of signing certificates, whichever way a webhook comes in.

Anybody who knows a topic can name certificates that do not exist. So only one webhook of a process waits at a time,
for a short part of the time at most; for all others the certificate is fetched meanwhile, and the provider repeats
them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mailglass_reconcile.errors import MailglassReconcileError

if TYPE_CHECKING:
    from cryptography import x509

THREADS = 4
"""Certificates that are fetched at once."""
IDLE_FACTOR = 7
"""After a wait in vain, no webhook waits for this many times as long."""


class UnavailableError(MailglassReconcileError):
    """A certificate, or the service that publishes it, cannot be reached now; a retry may succeed."""


class CertificateSource(NamedTuple):
    """The address of a certificate, and the function that fetches and validates it."""

    url: str
    load: Callable[[], x509.Certificate]


class _Failure(NamedTuple):
    at: float
    kind: type[MailglassReconcileError]
    text: str


@dataclass(eq=False, kw_only=True)
class CertificateStore:
    """The certificates that were fetched, by their address, and those to fetch.

    Attributes:
        wait_seconds: Seconds for which a webhook waits for its certificate.
        failure_seconds: Seconds for which an address that failed is not tried again: SNS repeats after 20.
        max_queued: Addresses that wait to be fetched; the newest is fetched first, and the oldest is evicted.
    """

    wait_seconds: float = 2.0
    failure_seconds: float = 15.0
    max_queued: int = 64

    def __post_init__(self) -> None:
        """Start without certificates."""
        self._certificates: dict[str, x509.Certificate] = {}
        self._failures: dict[str, _Failure] = {}
        self._next_wait_at = 0.0
        self.start_anew()

    def start_anew(self) -> None:
        """Start without threads, also in a forked child."""
        self._queue: dict[str, CertificateSource] = {}
        self._in_flight: set[str] = set()
        self._threads, self._is_waiting = 0, False
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

    def require(self, source: CertificateSource | None, *, may_wait: bool = True) -> None:
        """Return when the certificate of *source* is there; at once for None, or if it is there already.

        Args:
            source: The certificate that a webhook names.
            may_wait: False if the calling thread must not wait; the certificate is fetched all the same.

        Raises:
            UnavailableError: It is not there in time, or could not be fetched a moment ago.
            SignatureError: It is not the service's.
        """
        if source is None or source.url in self:
            return
        with self._changed:
            self._raise_failure(source.url)
            self._enqueue(source)
            if may_wait and not self._is_waiting and time.monotonic() >= self._next_wait_at:
                self._wait(source.url)
            self._raise_failure(source.url)
        if source.url not in self:
            raise UnavailableError("the certificate of a notification is not there yet: try again")

    def _wait(self, url: str) -> None:
        self._is_waiting, started_at = True, time.monotonic()
        try:
            self._changed.wait_for(lambda: url in self or url in self._failures, self.wait_seconds)
        finally:
            self._is_waiting = False
            if url not in self:
                now = time.monotonic()
                self._next_wait_at = now + (now - started_at) * IDLE_FACTOR

    def _raise_failure(self, url: str) -> None:
        oldest = time.monotonic() - self.failure_seconds
        while self._failures and next(iter(self._failures.values())).at < oldest:
            del self._failures[next(iter(self._failures))]
        if failure := self._failures.get(url):
            raise failure.kind(failure.text)

    def _enqueue(self, source: CertificateSource) -> None:
        """Enqueue a certificate as the newest, unless it is in flight or there."""
        if source.url in self or source.url in self._in_flight:
            return
        self._queue.pop(source.url, None)
        self._queue[source.url] = source
        if len(self._queue) > self.max_queued:
            del self._queue[next(iter(self._queue))]
        if self._threads < THREADS:
            threading.Thread(target=self._fetch_queue, name="mailglass-certificates", daemon=True).start()
            self._threads += 1  # not before the thread runs, which may not start

    def _fetch_queue(self) -> None:
        while source := self._take_newest():
            self._fetch(source)

    def _take_newest(self) -> CertificateSource | None:
        with self._changed:
            if not self._queue:
                self._threads -= 1
                return None
            url, source = self._queue.popitem()
            self._in_flight.add(url)
            return source

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
            if error is not None:
                self._failures[source.url] = _Failure(time.monotonic(), type(error), str(error))
            self._changed.notify_all()
