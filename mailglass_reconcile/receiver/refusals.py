"""The response to a webhook that was not recorded, whichever framework sends it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError

from mailglass_reconcile.errors import (
    BodyTooLargeError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    InvalidEventError,
    InvalidWebhookError,
    SchemaOutdatedError,
    SignatureError,
    UnknownProviderError,
)
from mailglass_reconcile.providers import registry
from mailglass_reconcile.providers.certificates import UnavailableError
from mailglass_reconcile.receiver.admission import (
    BodyTimeoutError,
    ClientDisconnectedError,
    ForeignHostError,
    MethodNotAllowedError,
    OverloadedError,
)
from mailglass_reconcile.receiver.results import RequestResult, own_engine
from mailglass_reconcile.record import failures
from mailglass_reconcile.rules import provider_rules
from mailglass_reconcile.rules.addresses import contains_address
from mailglass_reconcile.rules.humanize import sanitize
from mailglass_reconcile.rules.log_throttle import LogThrottle

logger = logging.getLogger(__name__)

RETRY_AFTER: Mapping[str, str] = {"retry-after": "30"}
RETRY_STATUSES = (408, 429, 503)
INVALID_SIGNATURE = "invalid signature"

_throttle = LogThrottle()
_OF_THE_DATABASE = (DatabaseUnavailableError, DatabaseRefusedError, SchemaOutdatedError, DBAPIError)


class Refusal(NamedTuple):
    """The response to a webhook that was not recorded.

    Attributes:
        status: Its status.
        text: Its text, which is `text/plain`.
        headers: Its headers, with names in lower case.
    """

    status: int
    text: str
    headers: Mapping[str, str] = {}


def refusal(provider: str, error: Exception) -> Refusal:
    """Return the response to a webhook that was not recorded, and log the cause once a minute; it never raises.

    It is counted, and stored for the doctor if this process has a database (`configure`, or `MAILGLASS_DATABASE_URL`).
    It has the status of `docs/record-and-receive.md#status-codes`: an error of your own gets 503, so that the
    provider sends the webhook again.

    Args:
        provider: The provider's name as it came, such as the last part of the request's path.
        error: The exception that `receive`, your commit or your own code has raised.

    Returns:
        Status, text and headers.
    """
    return refuse(RequestResult(provider, own_engine()), error)


def refuse(result: RequestResult, error: Exception) -> Refusal:
    """Do what `refusal` does, and count it as the result of a request."""
    answer, cause = _make_refusal(result.provider, error)
    is_for_good = answer.text == INVALID_SIGNATURE or answer.status not in RETRY_STATUSES
    result.count("refused" if is_for_good else "failed", cause)
    return answer


def _make_refusal(provider: str, error: Exception) -> tuple[Refusal, str | None]:
    """Return the response, and the cause to store, in a word of ours; None stores nothing."""
    is_known = registry.is_known(provider)
    definition = registry.get_provider(provider) if is_known else None
    subject = f"a webhook of {provider_rules.canonical(provider)}" if is_known else "a webhook"
    rejection_status, retry_status = (
        (definition.rejection_status, definition.retry_status) if definition else (401, 503)
    )

    def log(level: int, cause: str) -> None:
        # What a stranger can bring about without a secret is a warning.
        if _throttle.allow((subject, cause)):
            logger.log(level, "%s was refused: %s", subject, cause)

    answer, stored_cause = Refusal(retry_status, "try again later", RETRY_AFTER), None
    match error:
        case UnknownProviderError():
            _log_unknown(subject, str(error) if is_known else None, provider)
            answer = Refusal(404, "no secret is configured for this provider")
        case SignatureError():
            log(logging.WARNING, str(error))
            headers = {"www-authenticate": 'Basic realm="webhooks"'} if rejection_status == 401 else RETRY_AFTER
            answer, stored_cause = Refusal(rejection_status, INVALID_SIGNATURE, headers), error.cause
        case BodyTooLargeError():
            log(logging.WARNING, "its body is too large")
            answer, stored_cause = Refusal(413, "the body is too large"), "too large"
        case InvalidWebhookError() | InvalidEventError():
            log(logging.ERROR, str(error))
            answer, stored_cause = Refusal(400, "the body cannot be read"), "unreadable"
        case ClientDisconnectedError():
            log(logging.WARNING, "its client disconnected before the end of the body")
            answer = Refusal(400, "the client has left")
        case MethodNotAllowedError():
            log(logging.WARNING, "its method is not POST")
            answer = Refusal(405, "only POST is answered here", {"allow": "GET, HEAD, POST"})
        case ForeignHostError():
            log(logging.WARNING, "its header Host names none of the allowed hosts")
            answer = Refusal(400, "no webhook is received for this host")
        case BodyTimeoutError():
            log(logging.WARNING, "its body did not arrive in time")
            answer = Refusal(408 if retry_status == 503 else retry_status, "the body did not arrive in time")
        case UnavailableError():
            log(logging.WARNING, str(error))
            stored_cause = "certificate"
        case OverloadedError():
            log(logging.WARNING, "too many webhooks are in flight")
        case _:  # including errors of an application's functions, and bugs of ours
            failures.log_failure(subject, error)
            stored_cause = "database" if isinstance(error, _OF_THE_DATABASE) else "other"
    return answer, stored_cause


def _log_unknown(subject: str, cause: str | None, provider: str) -> None:
    """Log that a webhook is not received here; without a cause, its name is no provider's: strangers may send any."""
    if not _throttle.allow((subject, cause)):
        return
    if cause is None:
        name = "a name that looks like an address" if contains_address(provider) else f"'{sanitize(provider, 50)}'"
        cause = f"its address ends with no provider's name, but {name}"
    logger.warning("%s was answered with 404: %s", subject, cause)
