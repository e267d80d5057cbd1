"""Force the race: deliver a webhook before its send has committed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.store.database import Database, Transaction
from mailglass_reconcile.testing.databases import DatabaseCopy

Sent = TypeVar("Sent")
Response = TypeVar("Response")

SECONDS = 20

# Other sessions can read deliveries and lock their rows; a writer waits.
_HOLD = "LOCK TABLE {schema}.mailglass_deliveries IN SHARE MODE"
_GIVE_UP = "SELECT set_config('idle_in_transaction_session_timeout', :milliseconds, true)"

_IS_WAITED_FOR = """
SELECT EXISTS (SELECT FROM pg_locks
                WHERE NOT granted AND relation = to_regclass(:deliveries)
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


def webhook_first(
    database: Database | DatabaseCopy,
    send: Callable[[], Sent],
    webhook: Callable[[], Response],
    *,
    seconds: int = SECONDS,
) -> tuple[Sent, Response]:
    """Call *send*, and call *webhook* before *send* can commit; return both results.

    *send* runs in its own thread until it stores a delivery. It waits there while *webhook* runs to its end, and then
    continues. By then your application has called the provider's API, so the message id is known.

    Args:
        database: The database in which both record, on their own connections.
        send: Sends one message and records it, such as a request to your application.
        webhook: Delivers the webhooks about it, such as further requests.
        seconds: How long each step may take.

    Raises:
        AssertionError: *send* stored no delivery, or *webhook* took longer than *seconds*.
    """
    with ThreadPoolExecutor(1) as threads:
        with Database(database.engine, database.settings).writing() as tx:
            tx.execute(_HOLD)
            tx.execute(_GIVE_UP, {"milliseconds": str(seconds * 1_000)})
            sending = threads.submit(_closing, send)
            _wait(tx, sending, seconds)
            response = webhook()
            _still_holds(tx, seconds)
        return sending.result(seconds), response


def _closing(send: Callable[[], Sent]) -> Sent:
    """Call *send*, and close Django's connections of this thread, so that the test database can be dropped."""
    try:
        return send()
    finally:
        # Without settings, Django has no connections to close.
        if "django.db" in sys.modules and sys.modules["django.conf"].settings.configured:
            sys.modules["django.db"].connections.close_all()


def _wait(tx: Transaction, sending: Future[Any], seconds: int) -> None:
    deadline = time.monotonic() + seconds
    while not tx.execute(_IS_WAITED_FOR, {"deliveries": tx.name_of("mailglass_deliveries")}).scalar_one():
        if sending.done():
            sending.result()
            raise AssertionError("send() returned without storing a delivery: does it call record_send?")
        if time.monotonic() > deadline:
            raise AssertionError(f"send() did not store a delivery within {seconds} s")
        time.sleep(0.01)


def _still_holds(tx: Transaction, seconds: int) -> None:
    try:
        tx.execute("SELECT 1")
    except DBAPIError:
        raise AssertionError(
            f"webhook() took longer than {seconds} s: it may wait for the delivery that send() is storing"
        ) from None
