"""What a caller hands over: a SQLAlchemy Connection, or a Session, whose own connection is used."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session

from mailglass_reconcile.errors import unavailable


def connection_of(given: object) -> sa.Connection:
    """Return the connection of a SQLAlchemy Connection or Session, in its own transaction.

    Raises:
        DatabaseUnavailableError: The Session had no connection yet, and none can be made.
        TypeError: It is something else.
    """
    if isinstance(given, sa.Connection):
        return given
    session = session_of(given)
    if session is not None:
        try:
            return session.connection()
        except OSError as error:  # asyncpg's own, when nobody listens
            raise unavailable(type(error).__name__) from None
    raise TypeError(
        f"pass a SQLAlchemy Connection or Session, not {type(given).__module__}.{type(given).__name__}:"
        " `with engine.begin() as connection`, or in asynchronous code `await session.run_sync(…)`"
    )


def session_of(given: object) -> Session | None:
    """Return the Session that was handed over, or None if it was none."""
    if isinstance(given, scoped_session):
        given = given()
    return given if isinstance(given, Session) else None
