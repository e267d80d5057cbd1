"""What an application's message says of itself: the `mailable`, `stream` and `metadata` of its deliveries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from anymail.utils import UNSET

from mailglass_reconcile.contrib.django import project
from mailglass_reconcile.errors import InvalidEventError
from mailglass_reconcile.record import failures, validation
from mailglass_reconcile.rules.humanize import sanitize
from mailglass_reconcile.rules.matching import MAX_ID_LENGTH

logger = logging.getLogger(__name__)

VALIDATORS: Mapping[str, Callable[[str, object], object]] = {
    "mailable": validation.name,
    "stream": validation.stream,
    "metadata": validation.metadata,
}
"""How each value that `MAILGLASS_DELIVERY` may return is validated."""


def read(message: Any) -> dict[str, Any]:
    """Return the arguments of `record_send` for a message: those of `MAILGLASS_DELIVERY`, or else the message's own.

    Nothing is raised, because the mail has been sent: what cannot be used is logged.
    """
    values = _message_defaults(message)
    try:
        function = project.load_function("MAILGLASS_DELIVERY")
        if function is not None:
            with project.savepoint():
                returned = function(message)
            values |= _validate(returned)
    except Exception as error:  # an application's function may fail in any way
        logger.error("a send is recorded without the values of MAILGLASS_DELIVERY: %s", failures.describe_error(error))
    return values


def _validate(values: object) -> dict[str, object]:
    if not isinstance(values, Mapping):
        raise InvalidEventError(f"it must return a mapping with some of {', '.join(VALIDATORS)}")
    unknown = [sanitize(str(key)) for key in values if key not in VALIDATORS]
    if unknown:
        raise InvalidEventError(f"it returned {', '.join(unknown)}; it may return {', '.join(VALIDATORS)}")
    return {key: VALIDATORS[key](key, value) for key, value in values.items()}


def _message_defaults(message: Any) -> dict[str, Any]:
    """Return the template or the first tag as `mailable`, and Anymail's metadata, as far as they can be stored."""
    values: dict[str, Any] = {}
    for name, read_value in (("mailable", _mailable), ("metadata", _metadata)):
        try:
            value = read_value(message)
        except Exception as error:  # an application may put any object there
            logger.warning("a send is recorded without the %s of its message: %s", name, failures.describe_error(error))
        else:
            values |= {name: value} if value else {}
    return values


def _mailable(message: Any) -> str | None:
    kind = str(_option(message, "template_id") or next(iter(_option(message, "tags") or ()), "")).strip()
    return validation.name("mailable", sanitize(kind, MAX_ID_LENGTH - 1)) if kind else None


def _metadata(message: Any) -> object:
    metadata = _option(message, "metadata")
    return validation.metadata("metadata", metadata) if metadata else None


def _option(message: Any, name: str) -> Any:
    """Return an option of Anymail's; None if the message has none, as a plain `EmailMessage`."""
    value = getattr(message, name, UNSET)
    return None if value is UNSET else value
