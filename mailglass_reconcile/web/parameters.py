"""The parameters in the address of a page; every filter can be bookmarked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from starlette.datastructures import QueryParams

from mailglass_reconcile.ops import orphans
from mailglass_reconcile.ops.runs import RunFilter
from mailglass_reconcile.rules.states import OPEN_STATES, RUN_STATUSES
from mailglass_reconcile.store.queries.orphan_lists import ListFilter
from mailglass_reconcile.store.tables.runs import KINDS

HOURS = {6: "6 hours", 24: "24 hours", 168: "7 days"}
FIELDS = ("state", "tenant", "provider", "type", "message_id")
LONGEST = 512


class InvalidParameterError(Exception):
    """A parameter has a value that cannot be used; the message is shown on the page."""


class NotFoundError(Exception):
    """There is no such event or delivery."""


@dataclass(frozen=True, slots=True)
class ListParameters:
    """The filter of a list of orphans, its start, and the `fields` that fill the form again."""

    filters: ListFilter
    after: UUID | None
    fields: dict[str, str]


def parse_hours(query: QueryParams) -> int:
    value = query.get("hours", "24")
    if value not in map(str, HOURS):
        raise InvalidParameterError(f"hours: use one of {', '.join(map(str, HOURS))}")
    return int(value)


def parse_listing(query: QueryParams) -> ListParameters:
    fields = {name: read_text(query, name) for name in FIELDS}
    if fields["state"] not in ("", *OPEN_STATES):
        raise InvalidParameterError(f"state: use one of {', '.join(OPEN_STATES)}")
    filters = orphans.make_filter(
        state=fields["state"] or None,
        tenant_id=fields["tenant"] or None,
        provider=fields["provider"] or None,
        type=fields["type"] or None,
        message_id=fields["message_id"] or None,
    )
    return ListParameters(filters, _parse_after(query.get("after", "")), fields)


def parse_runs(query: QueryParams) -> tuple[RunFilter, int | None]:
    """Return the filter for runs, and the id of the run before which the page begins."""
    fields = {name: read_text(query, name) for name in ("kind", "status", "before")}
    for name, choices in (("kind", KINDS), ("status", RUN_STATUSES)):
        if fields[name] not in ("", *choices):
            raise InvalidParameterError(f"{name}: use one of {', '.join(choices)}")
    before = fields["before"]
    if before and not (before.isascii() and before.isdecimal() and len(before) < 19):
        raise InvalidParameterError("before: the id of a run is a number")
    idle = bool(query.get("idle")) or fields["kind"] in ("recent", "dispatch")
    return RunFilter(fields["kind"] or None, fields["status"] or None, idle), int(before) if before else None


def has_empty(query: QueryParams) -> bool:
    """Return True if a parameter is empty, as in a form that was sent with empty fields."""
    return any(not value for value in query.values())


def parse_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise NotFoundError from None


def read_text(fields: Mapping[str, str], name: str) -> str:
    """Return a field's value, trimmed; empty if it is not there."""
    value = fields.get(name, "").strip()
    if len(value) > LONGEST:
        raise InvalidParameterError(f"{name}: use at most {LONGEST} characters")
    if "\x00" in value:
        raise InvalidParameterError(f"{name}: remove the character NUL")
    return value


def _parse_after(text: str) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        raise InvalidParameterError("after: an event's id is a UUID") from None
