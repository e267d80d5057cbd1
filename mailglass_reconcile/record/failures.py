"""Failures to record: counted by cause, and logged at most once a minute for each cause.

Webhooks come by the thousand, and providers repeat for hours each one that was not recorded.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from mailglass_reconcile import telemetry
from mailglass_reconcile.errors import InvalidEventError, MailglassReconcileError
from mailglass_reconcile.rules.log_throttle import LogThrottle

logger = logging.getLogger(__name__)

_throttle = LogThrottle()
_COUNTED_ATTRIBUTE = "_mailglass_counted"
"""Set on an error that was counted already, because one writer may call another."""


_is_logged_by_caller: ContextVar[bool] = ContextVar("is_logged_by_caller", default=False)


@contextmanager
def logged_by_caller() -> Iterator[None]:
    """Leave the log line about a failure in the block to the caller, which knows more about it."""
    token = _is_logged_by_caller.set(True)
    try:
        yield
    finally:
        _is_logged_by_caller.reset(token)


@contextmanager
def count_failure(subject: str) -> Iterator[None]:
    """Count and log an error that leaves the block, once; *subject* is what failed, such as `a webhook of mailgun`."""
    try:
        yield
    except MailglassReconcileError as error:
        if not hasattr(error, _COUNTED_ATTRIBUTE):
            setattr(error, _COUNTED_ATTRIBUTE, True)
            telemetry.count_recording_failure(type(error).__name__)
            if not _is_logged_by_caller.get():
                log_failure(subject, error)
        raise


def log_failure(subject: str, error: Exception) -> None:
    """Log that *subject* was not recorded, at most once a minute for each cause; an invalid event is only raised."""
    if not isinstance(error, InvalidEventError) and _throttle.allow((subject, type(error).__name__)):
        logger.error("%s was not recorded: %s", subject, describe_error(error))


def describe_error(error: Exception) -> str:
    """Describe an error in a few words, with its place but without a foreign message, which may hold an address."""
    if isinstance(error, MailglassReconcileError):
        return str(error)
    place = "".join(f" in {frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-1:])
    return f"{type(error).__name__}{place}"
