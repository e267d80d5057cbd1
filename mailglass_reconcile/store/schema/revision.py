"""The revisions of our tables, those that this version works on, and the remedy for any other.

The id of a released revision has four digits, of which the first is the major version.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mailglass_reconcile.errors import SchemaOutdatedError
from mailglass_reconcile.store.schema import script

VERSION_TABLE = "mailglass_reconcile_version"
"""Alembic's table, which has the revision."""

TABLES = {
    "mailglass_open_orphans": (
        "event_id tenant_id arrived_at provider recipient recipient_lost rank ids state refused"
    ),
    "mailglass_open_orphan_ids": "event_id position candidate_id",
    "mailglass_handler_outbox": (
        "event_id handler delivery_id type state attempts next_at error inserted_at finished_at"
    ),
    "mailglass_handled_types": "type handler seen_at seen_by",
    "mailglass_reconcile_refusals": "provider tenant_id since last_at refused failed cause accepted_at",
    "mailglass_reconcile_retention": "relation days",
    "mailglass_reconcile_runs": (
        "id started_at finished_at kind origin app interval_seconds tenant_id status error runs scanned linked"
        " linked_unchecked unmatched unmatchable ambiguous tenant_mismatch recipient_mismatch skipped failed"
        " published publish_failed expired events deliveries duration_ms remaining linkable_since open_groups"
        " covered_until covered ranges ranges_done"
    ),
}
"""The tables that the revisions make, with their columns; the first one tells ours from another table of the name."""

MAILGLASS_TABLES = {
    "mailglass_events": (
        "id tenant_id delivery_id type occurred_at idempotency_key reject_reason normalized_payload metadata"
        " needs_reconciliation inserted_at"
    ),
    "mailglass_deliveries": (
        "id tenant_id mailable stream recipient recipient_domain provider provider_message_id last_event_type"
        " last_event_at terminal dispatched_at delivered_at bounced_at complained_at suppressed_at metadata"
        " lock_version inserted_at updated_at"
    ),
    "mailglass_webhook_events": "id tenant_id provider provider_event_id status raw_payload inserted_at updated_at",
}
"""The tables that `migrate` makes if Mailglass has not, with the columns that our statements use."""

MAKE_AGAIN = (
    "restore it from a backup, or run `mailglass-reconcile migrate --remove`, then `mailglass-reconcile migrate`, then"
    " what `mailglass-reconcile migrate --grants` prints"
)
"""The remedy for a table of ours that is missing."""

REVISIONS = script.revision_ids()
"""The ids of this version's revisions, in their order."""

VERSION = REVISIONS[-1]
"""The Alembic revision that this version works on."""

READ = "SELECT max(version_num) FROM {schema}.mailglass_reconcile_version"

_RELEASED = re.compile(r"[0-9]{4}")


class Problem(NamedTuple):
    """The reason why something cannot be done on a database, and the remedy."""

    message: str
    remedy: str

    def __str__(self) -> str:
        """Return both in one sentence."""
        return f"{self.message}: {self.remedy}"


def is_newer(version: str | None) -> bool:
    """Return True if a newer version of the same major has migrated the database; this one works on it."""
    return version is not None and is_later_release(version) and version[0] == VERSION[0]


def is_later_release(version: str) -> bool:
    """Return True if a later release has migrated the database, of whatever major version."""
    return bool(_RELEASED.fullmatch(version)) and version > VERSION[:4]


def find_mismatch(version: str | None) -> Problem | None:
    """Return the difference of *version* from `VERSION`, and the remedy; None if they are the same.

    Until the first release the first revision has another id whenever it changes, so an earlier one cannot be migrated.
    """
    if version == VERSION:
        return None
    if version is None:
        return Problem(
            f"the database is not migrated, this version needs {VERSION}", "run `mailglass-reconcile migrate`"
        )
    if version in REVISIONS:
        return Problem(
            f"the database is at revision {version}, this version needs {VERSION}", "run `mailglass-reconcile migrate`"
        )
    if is_later_release(version):
        return Problem(
            f"the database is at revision {version}, this version knows {VERSION}",
            "install the newer mailglass-reconcile here",
        )
    return Problem(
        f"the database is at revision {version} of an unreleased version, this one needs {VERSION}",
        "run `mailglass-reconcile migrate --remove`, and then `mailglass-reconcile migrate`",
    )


def require(version: str | None) -> None:
    """Raise `SchemaOutdatedError` if this version does not work on a database at the revision *version*.

    It works on a newer one of its major: revisions only add, so processes go on while an update rolls out.
    """
    mismatch = None if is_newer(version) else find_mismatch(version)
    if mismatch:
        raise SchemaOutdatedError(str(mismatch))
