"""The response to a webhook that was not recorded, whichever framework sends it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from mailglass_reconcile.errors import InvalidEventError, InvalidWebhookError, SignatureError
from mailglass_reconcile.receiver.admission import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientDisconnectedError,
    OverloadedError,
)
from mailglass_reconcile.record import failures
from mailglass_reconcile.rules.log_throttle import LogThrottle
from mailglass_reconcile.webhooks.certificates import UnavailableError
from mailglass_reconcile.webhooks.provider import Provider

logger = logging.getLogger(__name__)

RETRY_AFTER: Mapping[str, str] = {"retry-after": "30"}
INVALID_SIGNATURE = "invalid signature"


class Refusal(NamedTuple):
    """Status, text and headers, with lower-case names, of the response."""

    status: int
    text: str
    headers: Mapping[str, str] = {}


TRY_AGAIN = Refusal(503, "try again later", RETRY_AFTER)


def refuse(record: Provider, provider: str, error: Exception, throttle: LogThrottle) -> Refusal:
    """Return the response to a webhook that was not recorded, and log each cause once a minute.

    A cause that a stranger can bring about without a secret is logged as a warning.
    """

    def log(level: int, cause: str) -> None:
        if throttle.allow((provider, cause)):
            logger.log(level, "a webhook of %s was refused: %s", provider, cause)

    match error:
        case SignatureError():
            log(logging.WARNING, str(error))
            is_final = record.rejection_status == 401
            headers = {"www-authenticate": 'Basic realm="webhooks"'} if is_final else RETRY_AFTER
            return Refusal(record.rejection_status, INVALID_SIGNATURE, headers)
        case InvalidWebhookError() | InvalidEventError():
            log(logging.ERROR, str(error))
            return Refusal(400, "the body cannot be read")
        case BodyTooLargeError():
            log(logging.WARNING, "its body is too large")
            return Refusal(413, "the body is too large")
        case ClientDisconnectedError():
            return Refusal(400, "the client has left")
        case BodyTimeoutError():
            log(logging.WARNING, "its body did not arrive in time")
            status = 408 if record.retry_status == 503 else record.retry_status
            return Refusal(status, "the body did not arrive in time")
        case UnavailableError():
            log(logging.WARNING, str(error))
        case OverloadedError():
            log(logging.WARNING, "too many webhooks are in flight")
        case _:  # including errors of an application's functions, and bugs of ours
            failures.log_failure(f"a webhook of {provider}", error)
    return TRY_AGAIN._replace(status=record.retry_status)
