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
from typing import TYPE_CHECKING, NamedTuple, ParamSpec

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

Load = Callable[[], "x509.Certificate"]
Arguments = ParamSpec("Arguments")


class CertificateNeededError(MailglassReconcileError):
    """A signature cannot be checked before its certificate has been fetched."""

    def __init__(self, wanted: Callable[[], Future[None]]) -> None:
        super().__init__("the certificate of a notification has not been fetched: try again")
        self.wanted = wanted


class TooLateError(MailglassReconcileError):
    """A certificate was not fetched in time."""

    def __init__(self) -> None:
        super().__init__(f"the certificate of a notification was not there after {WAIT_SECONDS:.0f} seconds: try again")


def patiently(check: Callable[Arguments, None], *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
    """Call a function that checks a signature, and once more if it had to wait for a certificate."""
    try:
        check(*args, **kwargs)
        return
    except CertificateNeededError as error:
        wanted = error.wanted()
    try:
        wanted.result(WAIT_SECONDS)
    except TimeoutError:
        wanted.cancel()
        raise TooLateError from None
    check(*args, **kwargs)


class _Wanted(NamedTuple):
    url: str
    load: Load
    fetched: Future[None]


class Certificates:
    """Those that were fetched, and what waits for others."""

    def __init__(self) -> None:
        self._known: dict[str, x509.Certificate] = {}
        self._waiting: list[_Wanted] = []
        self._under_way: set[str] = set()
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._next_try = 0.0
        self._threads = 0
        self._lock = threading.Lock()

    def get(self, url: str, load: Load) -> x509.Certificate:
        known = self._known.get(url)
        if known is None:
            raise CertificateNeededError(lambda: self._want(url, load))
        return known

    def _want(self, url: str, load: Load) -> Future[None]:
        one = _Wanted(url, load, Future())
        with self._lock:
            self._waiting.append(one)
            if self._threads < THREADS:
                self._threads += 1
                threading.Thread(target=self._work, name="mailglass-certificates", daemon=True).start()
        return one.fetched

    def _work(self) -> None:
        """Fetch as long as anything waits."""
        while True:
            with self._lock:
                self._waiting = [one for one in self._waiting if not one.fetched.cancelled()]
                free = [one for one in self._waiting if one.url not in self._under_way]
                if not free:
                    self._threads -= 1
                    return
                pause = self._pause()
                if not pause:
                    chosen = random.choice(free)  # noqa: S311 - so that no order lets strangers go first
                    self._under_way.add(chosen.url)
                    self._next_try = time.monotonic() + PAUSE_SECONDS
            if pause:
                time.sleep(pause)
            else:
                self._fetch(chosen)

    def _pause(self) -> float:
        now = time.monotonic()
        failing = len(self._failures) == FAILURES and now - self._failures[0] < FAILURES_SECONDS
        return max(0.0, self._next_try - now) if failing else 0.0

    def _fetch(self, chosen: _Wanted) -> None:
        failure: Exception | None = None
        try:
            found = chosen.load()
        except Exception as error:  # those that wait raise it
            failure = error
        with self._lock:
            self._under_way.remove(chosen.url)
            settled = [one for one in self._waiting if one.url == chosen.url]
            self._waiting = [one for one in self._waiting if one.url != chosen.url]
            if failure:
                self._failures.append(time.monotonic())
            else:
                self._known[chosen.url] = found
                while len(self._known) > MAX_CERTIFICATES:
                    del self._known[next(iter(self._known))]
        for one in settled:
            if not one.fetched.set_running_or_notify_cancel():
                continue
            if failure:
                one.fetched.set_exception(failure)
            else:
                one.fetched.set_result(None)
