"""What the address of a page asks for; every filter can be bookmarked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from starlette.datastructures import QueryParams

from mailglass_reconcile.ops.orphans import EXPIRED, Filters
from mailglass_reconcile.rules.states import OPEN_STATES
from mailglass_reconcile.rules.wording import seconds_of
from mailglass_reconcile.web.access import Viewer

HOURS = {6: "6 hours", 24: "24 hours", 168: "7 days"}
FIELDS = ("state", "provider", "type", "older", "newer", "message_id")
LONGEST = 512


class UnusableError(Exception):
    """A part of the address cannot be used; the message is for the page."""


class ElsewhereError(Exception):
    """What is asked for is another tenant's, or is not there: the same answer in both cases."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Which orphans to list, from where, in which order; `given` are the fields of the form as they came."""

    filters: Filters
    after: UUID | None
    newest_first: bool
    given: dict[str, str]


class Shown(NamedTuple):
    """Which tenant and how many hours an overview shows."""

    tenant_id: str | None
    hours: int


def tenant(query: QueryParams, viewer: Viewer) -> str | None:
    """Return the tenant that is asked for: a tenant's viewer has no other than the own one.

    Raises:
        ElsewhereError: It is another one.
    """
    asked = query.get("tenant", "").strip() or None
    if viewer.tenant_id is None:
        return asked
    if asked not in (None, viewer.tenant_id):
        raise ElsewhereError
    return viewer.tenant_id


def shown(query: QueryParams, viewer: Viewer) -> Shown:
    """Return what an overview shows.

    Raises:
        UnusableError: There is no such number of hours.
        ElsewhereError: Another tenant.
    """
    hours = query.get("hours", "24")
    if hours not in map(str, HOURS):
        raise UnusableError(f"hours: use one of {', '.join(map(str, HOURS))}")
    return Shown(tenant(query, viewer), int(hours))


def listing(query: QueryParams, viewer: Viewer) -> Listing:
    """Return which orphans to list.

    Raises:
        UnusableError: A field has a value that cannot be used.
        ElsewhereError: Another tenant.
    """
    given = {name: query.get(name, "").strip() for name in FIELDS}
    for name, value in given.items():
        if len(value) > LONGEST or "\x00" in value:
            raise UnusableError(f"{name}: at most {LONGEST} characters")
    if given["state"] not in ("", *OPEN_STATES):
        raise UnusableError(f"state: use one of {', '.join(OPEN_STATES)}")
    filters = Filters(
        state=given["state"] or None,
        tenant_id=tenant(query, viewer),
        provider=given["provider"] or None,
        type=given["type"] or None,
        older=_seconds("older", given["older"]),
        newer=_seconds("newer", given["newer"]),
        message_id=given["message_id"] or None,
    )
    newest_first = query.get("order") == "newest" and filters.state != EXPIRED
    return Listing(filters, _event("after", query.get("after", "")), newest_first, given)


def sought(query: QueryParams) -> str:
    """Return what somebody looks for.

    Raises:
        UnusableError: Nothing can have such an id.
    """
    text = query.get("q", "").strip()
    if len(text) > LONGEST or "\x00" in text:
        raise UnusableError(f"q: at most {LONGEST} characters")
    return text


def id_of(text: str) -> UUID:
    """Return an id of an event or a delivery.

    Raises:
        ElsewhereError: Nothing can have such an id.
    """
    try:
        return UUID(text)
    except ValueError:
        raise ElsewhereError from None


def _event(name: str, text: str) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        raise UnusableError(f"{name}: an event's id is a UUID") from None


def _seconds(name: str, text: str) -> float | None:
    try:
        return seconds_of(text) if text else None
    except ValueError as error:
        raise UnusableError(f"{name}: {error}") from None
