"""Running ahead: a thread computes the next item of an iterator while the caller works on the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.1


@contextmanager
def run_ahead(items: Iterator[T], cancel: Callable[[], None]) -> Iterator[Iterator[T]]:
    """Yield an iterator over *items*, each of which a thread computes ahead; an error is raised where its item is.

    If the block ends before the items do, *cancel* is called until the thread has given up.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="mailglass-reconcile-ahead") as thread:
        future: Future[T | None] = thread.submit(next, items, None)

        def computed() -> Iterator[T]:
            nonlocal future
            while (item := future.result()) is not None:
                future = thread.submit(next, items, None)
                yield item

        try:
            yield computed()
        finally:
            while not future.done():
                cancel()
                wait([future], POLL_SECONDS)
