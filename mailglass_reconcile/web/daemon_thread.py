"""A thread for one read of the database, for which the end of the process does not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from mailglass_reconcile.errors import MailglassReconcileError

T = TypeVar("T")


class NoThreadError(MailglassReconcileError):
    """The operating system starts no more threads for this process."""


def start(read: Callable[[], T]) -> Future[T]:
    """Call *read* in a daemon thread, and return its result or exception as a Future; raises `NoThreadError`."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(read())
        except BaseException as error:  # raised where the Future's result is read
            answer.set_exception(error)

    try:
        threading.Thread(target=run, daemon=True).start()
    except RuntimeError:
        raise NoThreadError(
            "no thread can be started: raise the limit of processes, threads or memory of this container"
        ) from None
    return answer
