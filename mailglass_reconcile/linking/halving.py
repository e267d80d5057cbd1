"""Statements that fail on the data of a few rows: they are run on halves until the culprit stands alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.store.database import OpenConnection
from mailglass_reconcile.store.migration import privileges

Row = TypeVar("Row")
Result = TypeVar("Result")

Retry = Callable[[Callable[[], Any]], Any]
"""Calls a function and returns its result; may call it again after a transient error."""


class RowFailure(NamedTuple):
    """The error with which an action fails on a single row."""

    error: DBAPIError


def run_halved(
    connected: OpenConnection,
    rows: Sequence[Row],
    action: Callable[[Sequence[Row]], Result],
    *,
    is_of_rows: Callable[[DBAPIError], bool],
    retry: Retry = operator.call,
    is_over: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Sequence[Row], Result | RowFailure]]:
    """Yield rows with the result of *action* on them: all *rows* at once or, where that fails, halves of them.

    A row on which the action fails alone is yielded with the error.

    Args:
        connected: The connection, to find out which privilege is missing.
        rows: The rows.
        action: Runs in one transaction.
        is_of_rows: True if fewer rows may succeed after an error; any other error is raised.
        retry: Retries transient errors.
        is_over: True if no further transaction may begin.

    Raises:
        DatabaseRefusedError: This role lacks a privilege; the message has the GRANT.
    """
    pending = [rows]
    while pending and not is_over():
        part = pending.pop()
        try:
            result: Result | RowFailure = retry(partial(action, part))
        except DBAPIError as error:
            privileges.require_privileges(connected, error)
            if not is_of_rows(error):
                raise
            if len(part) > 1:
                middle = len(part) // 2
                pending += [part[middle:], part[:middle]]
                continue
            result = RowFailure(error)
        yield part, result
