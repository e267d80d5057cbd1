"""What this version needs of the database."""

from __future__ import annotations

from typing import Any

from mailglass_reconcile.errors import SchemaOutdatedError
from mailglass_reconcile.rules import addresses

VERSION = "0001"
"""The Alembic revision that this version works on."""

VERSION_TABLE = "mailglass_reconcile_version"
TABLES = ("mailglass_open_orphans", "mailglass_open_orphan_ids", "mailglass_reconcile_runs", "mailglass_hook_outbox")
TABLE_INDEXES = (
    "mailglass_open_orphans_arrival_idx",
    "mailglass_open_orphan_ids_candidate_idx",
    "mailglass_reconcile_runs_minute_idx",
    "mailglass_reconcile_runs_kind_idx",
    "mailglass_hook_outbox_due_idx",
    "mailglass_hook_outbox_finished_idx",
)
INDEXES = ("mailglass_webhook_events_prune_idx", "mailglass_deliveries_reconcile_idx")
"""Our indexes on Mailglass's tables."""

# Nothing in it depends on a locale, as lower() does, or can fail. The letters that are lowered are those of ASCII, and
# the characters that are left out are what Python calls white space.
RECIPIENT_KEY = rf"""hashtextextended(coalesce(substring(regexp_replace(translate(left(recipient, 1000) COLLATE "C",
  E'ABCDEFGHIJKLMNOPQRSTUVWXYZ \t\n\x0b\f\r\x1c\x1d\x1e\x1f\u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006'
  '\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000', 'abcdefghijklmnopqrstuvwxyz'),
  '^.*<([^<>]*)>$', E'\\1') FROM '{addresses.INDEXED}'), ''), 0)"""
"""What our index on deliveries has of a recipient: equal wherever addresses compare as equal."""

RECONCILE_INDEX = (
    "mailglass_deliveries (hashtextextended(provider_message_id, 0), hashtextextended(tenant_id, 0),"
    f" ({RECIPIENT_KEY}))"
)
"""Our index on deliveries, over hashes: no value is too long for it."""
TRIGGERS = ("mailglass_open_orphans_add", "mailglass_open_orphans_remove")
"""Each trigger calls the function of its own name."""
GUARD = "mailglass_events_no_truncate"
"""The trigger against TRUNCATE, and its function; not every installation has it."""

READ_VERSION = "SELECT max(version_num) FROM {schema}.mailglass_reconcile_version"

OUR_OBJECTS = frozenset({*TABLES, *INDEXES, VERSION_TABLE})


def require_current(version: str | None) -> None:
    """Refuse a database that is not at `VERSION`.

    Raises:
        SchemaOutdatedError: Saying what to run.
    """
    if version != VERSION:
        raise SchemaOutdatedError(outdated(version))


def outdated(version: str | None) -> str:
    """Return the sentence for a database that is at another revision than `VERSION`."""
    at = version or "none"
    return f"the database is at revision {at}, this version needs {VERSION}: run `mailglass-reconcile migrate`"


def include_object(item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Alembic's `include_object` for an adopter's `env.py`: keep autogenerate from dropping what is ours.

    Args:
        item: The schema object.
        name: Its name.
        type_: `table`, `index`, `column`, …
        reflected: Whether it was found in the database.
        compare_to: What the application's metadata has in its place, or None.
    """
    if not reflected or compare_to is not None:
        return True
    return name not in OUR_OBJECTS and getattr(getattr(item, "table", None), "name", None) not in OUR_OBJECTS
