"""Where handlers work in Django: on the ORM's own connection, in `atomic()`, so that models are part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from django.db import Error, close_old_connections, transaction

from mailglass_reconcile.contrib.django import database
from mailglass_reconcile.errors import DatabaseRefusedError, DatabaseUnavailableError
from mailglass_reconcile.hooks import connections
from mailglass_reconcile.hooks.connections import Begin, Work


def use_djangos_connection() -> None:
    """Let the handlers of this process work on Django's connection."""
    connections.use(_connected)


@contextmanager
def _connected() -> Iterator[Begin]:
    close_old_connections()
    try:
        yield _begin
    except Error as error:
        state = getattr(error.__cause__, "sqlstate", None)
        where = f"DATABASES[{database.alias()!r}]"
        if state is None or state[:2] in ("08", "57"):
            raise DatabaseUnavailableError(f"cannot reach or use {where}: {state or type(error).__name__}") from None
        raise DatabaseRefusedError(f"{where} refused a statement (SQLSTATE {state})") from None


@contextmanager
def _begin() -> Iterator[Work]:
    with database.connection() as lent:
        yield Work(lent, lent, partial(transaction.atomic, database.alias()))
