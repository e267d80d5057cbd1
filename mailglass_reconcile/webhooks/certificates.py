"""Fetching certificates, which anybody can ask for by an unsigned notification that names one.

Each is fetched once. Two threads do nothing else, and if what is named is not there again and again, they pause between
two tries. So strangers cannot make this process busy, or use it to make others busy.
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
"""How long a webhook waits for its certificate."""
FAILURES = 10
FAILURES_SECONDS = 60.0
"""After as many failures in this time, there is one try in `PAUSE_SECONDS`."""
PAUSE_SECONDS = 2.0
MAX_CERTIFICATES = 32


class UnavailableError(MailglassReconcileError):
    """A certificate, or the service that publishes it, is not there now; another try may succeed."""


class Source(NamedTuple):
    """Where a certificate is, and what fetches and checks it."""

    url: str
    load: Callable[[], x509.Certificate]


class _Waiting(NamedTuple):
    source: Source
    fetched: Future[None]


class Certificates:
    """Those that were fetched, and what waits for others."""

    def __init__(self) -> None:
        self._known: dict[str, x509.Certificate] = {}
        self._waiting: list[_Waiting] = []
        self._in_flight: set[str] = set()
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._next_try = 0.0
        self._threads = 0
        self._lock = threading.Lock()

    def __contains__(self, url: str) -> bool:
        """Whether a certificate has been fetched."""
        return url in self._known

    def get(self, url: str) -> x509.Certificate:
        """Return a certificate that has been fetched.

        Raises:
            UnavailableError: It has not.
        """
        certificate = self._known.get(url)
        if certificate is None:
            raise UnavailableError("the certificate of a notification has not been fetched: try again")
        return certificate

    def fetch(self, source: Source) -> Future[None]:
        """Fetch a certificate in a thread; the result is there when it can be got, or has the error."""
        waiting = _Waiting(source, Future())
        with self._lock:
            self._waiting.append(waiting)
            if self._threads < THREADS:
                self._threads += 1
                threading.Thread(target=self._work, name="mailglass-certificates", daemon=True).start()
        return waiting.fetched

    def load(self, source: Source) -> None:
        """Fetch a certificate now, whatever else waits; raises what `source.load` raises."""
        if source.url not in self:
            certificate = source.load()
            with self._lock:
                self._add(source.url, certificate)

    def wait(self, source: Source | None) -> None:
        """Wait until a certificate has been fetched, if one is needed that is not known."""
        if source is None or source.url in self:
            return
        fetched = self.fetch(source)
        try:
            fetched.result(WAIT_SECONDS)
        except TimeoutError:
            fetched.cancel()
            raise too_late() from None

    def _add(self, url: str, certificate: x509.Certificate) -> None:
        self._known[url] = certificate
        while len(self._known) > MAX_CERTIFICATES:
            del self._known[next(iter(self._known))]

    def _work(self) -> None:
        """Fetch as long as anything waits."""
        while True:
            with self._lock:
                self._waiting = [waiting for waiting in self._waiting if not waiting.fetched.cancelled()]
                free = [waiting.source for waiting in self._waiting if waiting.source.url not in self._in_flight]
                if not free:
                    self._threads -= 1
                    return
                pause = self._pause()
                if not pause:
                    source = random.choice(free)  # noqa: S311 - so that no order lets strangers go first
                    self._in_flight.add(source.url)
                    self._next_try = time.monotonic() + PAUSE_SECONDS
            if pause:
                time.sleep(pause)
            else:
                self._fetch(source)

    def _pause(self) -> float:
        now = time.monotonic()
        failing = len(self._failures) == FAILURES and now - self._failures[0] < FAILURES_SECONDS
        return max(0.0, self._next_try - now) if failing else 0.0

    def _fetch(self, source: Source) -> None:
        failure: Exception | None = None
        try:
            certificate = source.load()
        except Exception as error:  # those that wait raise it
            failure = error
        with self._lock:
            self._in_flight.remove(source.url)
            settled = [waiting for waiting in self._waiting if waiting.source.url == source.url]
            self._waiting = [waiting for waiting in self._waiting if waiting.source.url != source.url]
            if failure:
                self._failures.append(time.monotonic())
            else:
                self._add(source.url, certificate)
        for waiting in settled:
            if not waiting.fetched.set_running_or_notify_cancel():
                continue
            if failure:
                waiting.fetched.set_exception(failure)
            else:
                waiting.fetched.set_result(None)


def too_late() -> UnavailableError:
    """Return the error of a webhook that has waited for its certificate for too long."""
    return UnavailableError(
        f"the certificate of a notification was not there after {WAIT_SECONDS:.0f} seconds: try again"
    )
