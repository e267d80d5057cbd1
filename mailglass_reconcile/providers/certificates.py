"""Fetch and cache signing certificates.

Anybody can send an unsigned notification that names a certificate. So each is fetched once, by two threads that do
nothing else, and they throttle themselves after repeated failures: strangers cannot keep this process busy, or use it
to keep others busy.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from mailglass_reconcile.errors import MailglassReconcileError

if TYPE_CHECKING:
    from cryptography import x509

THREADS = 2
WAIT_SECONDS = 5.0
"""Seconds for which a webhook waits for its certificate."""
FAILURES = 10
FAILURES_SECONDS = 60.0
"""After `FAILURES` failures in this time, one certificate is fetched in `THROTTLE_SECONDS`."""
THROTTLE_SECONDS = 2.0
MAX_CERTIFICATES = 32
MAX_QUEUED = 256
"""Requests that wait for a certificate at most; the webhook of a further one has to be sent again."""


class UnavailableError(MailglassReconcileError):
    """A certificate, or the service that publishes it, cannot be reached now; a retry may succeed."""


class CertificateSource(NamedTuple):
    """The address of a certificate, and the function that fetches and validates it."""

    url: str
    load: Callable[[], x509.Certificate]


class _FetchRequest(NamedTuple):
    source: CertificateSource
    future: Future[None]


class CertificateCache:
    """The certificates that were fetched, and the queue of those to fetch."""

    def __init__(self) -> None:
        self._certificates: dict[str, x509.Certificate] = {}
        self._queue: list[_FetchRequest] = []
        self._in_flight: set[str] = set()
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._next_try = 0.0
        self._threads = 0
        self._lock = threading.Lock()

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

    def schedule_fetch(self, source: CertificateSource) -> Future[None]:
        """Enqueue a certificate to be fetched by a thread.

        The future ends when `get` can return the certificate, or has the error.

        Raises:
            UnavailableError: `MAX_QUEUED` requests wait already.
        """
        request = _FetchRequest(source, Future())
        with self._lock:
            if len(self._queue) >= MAX_QUEUED:
                raise UnavailableError("too many notifications wait for a certificate: try again")
            if self._threads < THREADS:
                threading.Thread(target=self._work, name="mailglass-certificates", daemon=True).start()
                self._threads += 1
            self._queue.append(request)
        return request.future

    def load(self, source: CertificateSource) -> None:
        """Fetch a certificate in this thread, ahead of the queue; raises what `source.load` raises."""
        if source.url not in self:
            certificate = source.load()
            with self._lock:
                self._add(source.url, certificate)

    def wait(self, source: CertificateSource | None) -> None:
        """Wait until *source* has been fetched; return at once for None or a certificate that is cached."""
        if source is None or source.url in self:
            return
        future = self.schedule_fetch(source)
        try:
            future.result(WAIT_SECONDS)
        except TimeoutError:
            future.cancel()
            raise timeout_error() from None

    def _add(self, url: str, certificate: x509.Certificate) -> None:
        self._certificates[url] = certificate
        while len(self._certificates) > MAX_CERTIFICATES:
            del self._certificates[next(iter(self._certificates))]

    def _work(self) -> None:
        """Fetch certificates until the queue is empty."""
        while True:
            with self._lock:
                self._queue = [request for request in self._queue if not request.future.cancelled()]
                fetchable = [request.source for request in self._queue if request.source.url not in self._in_flight]
                if not fetchable:
                    self._threads -= 1
                    return
                delay = self._throttle_delay()
                if not delay:
                    source = random.choice(fetchable)  # noqa: S311 - in any fixed order, strangers could come first
                    self._in_flight.add(source.url)
                    self._next_try = time.monotonic() + THROTTLE_SECONDS
            if delay:
                time.sleep(delay)
            else:
                self._fetch(source)

    def _throttle_delay(self) -> float:
        now = time.monotonic()
        is_failing = len(self._failures) == FAILURES and now - self._failures[0] < FAILURES_SECONDS
        return max(0.0, self._next_try - now) if is_failing else 0.0

    def _fetch(self, source: CertificateSource) -> None:
        failure: Exception | None = None
        try:
            certificate = source.load()
        except Exception as error:  # the waiting webhooks raise it
            failure = error
        with self._lock:
            self._in_flight.remove(source.url)
            completed = [request for request in self._queue if request.source.url == source.url]
            self._queue = [request for request in self._queue if request.source.url != source.url]
            if failure:
                self._failures.append(time.monotonic())
            else:
                self._add(source.url, certificate)
        for request in completed:
            if not request.future.set_running_or_notify_cancel():
                continue
            if failure:
                request.future.set_exception(failure)
            else:
                request.future.set_result(None)


def timeout_error() -> UnavailableError:
    """Return the error of a webhook whose certificate was not fetched in time."""
    return UnavailableError(
        f"the certificate of a notification was not there after {WAIT_SECONDS:.0f} seconds: try again"
    )
