"""Recording that fails: counted by cause, and one line in the log for each cause and minute.

A webhook comes by the thousand, and a provider repeats what was not recorded for hours.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from mailglass_reconcile import telemetry
from mailglass_reconcile.errors import InvalidEventError, MailglassReconcileError
from mailglass_reconcile.rules.log_throttle import LogThrottle

logger = logging.getLogger(__name__)

_throttle = LogThrottle()
_NOTED = "_mailglass_noted"
"""On an error that was counted already, where one writer calls another."""


@contextmanager
def counted(what: str) -> Iterator[None]:
    """Count and log an error that leaves the block, once; *what* was not recorded, such as `a webhook of mailgun`."""
    try:
        yield
    except MailglassReconcileError as error:
        if not hasattr(error, _NOTED):
            setattr(error, _NOTED, True)
            telemetry.count_recording_failure(type(error).__name__)
            log(what, error)
        raise


def log(what: str, error: Exception) -> None:
    """Log once a minute for each cause that something was not recorded; the caller who passed it is told anyway."""
    if not isinstance(error, InvalidEventError) and _throttle.allow((what, type(error).__name__)):
        logger.error("%s was not recorded: %s", what, reason(error))


def reason(error: Exception) -> str:
    """Return in a few words what went wrong and where; another's message may hold an address."""
    if isinstance(error, MailglassReconcileError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {where.filename}:{where.lineno}"
