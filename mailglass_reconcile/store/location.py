"""In which schemas of the database Mailglass's tables and ours are, and whether ours were left behind by a move."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mailglass_reconcile.errors import docs_url
from mailglass_reconcile.store.revision import Problem

# Mailglass's own tables are recognized by one that `migrate` does not make.
FIND = """
SELECT n.nspname::text AS name, bool_or(c.relname = 'mailglass_events') AS has_ledger,
       bool_or(c.relname = 'mailglass_suppressions') AS is_mailglass_s, bool_or(c.relname = ANY (CAST(:ours AS text[])))
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relname = ANY (CAST(:ours AS text[]) || ARRAY['mailglass_events', 'mailglass_suppressions'])
   AND c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_'
 GROUP BY n.nspname ORDER BY 1
"""


class SchemaTables(NamedTuple):
    """A schema of the database with tables of Mailglass's or ours.

    Attributes:
        name: The schema.
        has_ledger: It has a `mailglass_events`.
        is_mailglass_s: Mailglass's own migrations made the tables.
        has_ours: It has tables of this package.
    """

    name: str
    has_ledger: bool
    is_mailglass_s: bool
    has_ours: bool


def find_relocation(schemas: Iterable[SchemaTables], configured: str) -> Problem | None:
    """Return a problem if Mailglass's tables have moved to another schema and ours have not, with its remedy.

    Args:
        schemas: The schemas of the database.
        configured: The schema of MAILGLASS_DATABASE_SCHEMA.
    """
    schemas = list(schemas)
    left = [schema.name for schema in schemas if schema.has_ours and not schema.has_ledger]
    ledgers = [schema.name for schema in schemas if schema.has_ledger and schema.is_mailglass_s]
    if not left or not ledgers:
        return None
    setting = "" if configured in ledgers else f", and set MAILGLASS_DATABASE_SCHEMA to {' or '.join(ledgers)}"
    return Problem(
        f"schema {', '.join(left)} has our tables but no mailglass_events, which schema {', '.join(ledgers)} has",
        f"if Mailglass's tables have moved, move ours as {docs_url('upgrading.md#mailglass')} describes{setting}",
    )
