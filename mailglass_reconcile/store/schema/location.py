"""In which schemas of the database Mailglass's tables and ours are, and whether ours were left behind by a move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mailglass_reconcile.errors import docs_url
from mailglass_reconcile.store.schema.revision import Problem

# Mailglass's own tables are recognized by one that `migrate` does not make. Tables of strangers, who may make some with
# our names in a schema of theirs, are not ours: their owner could not own the ledger.
FIND = """
WITH relation AS (
  SELECT n.nspname::text AS schema, c.relname, c.relowner
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
   WHERE c.relname = ANY (CAST(:ours AS text[]) || ARRAY['mailglass_events', 'mailglass_suppressions'])
     AND c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_'
)
SELECT r.schema AS name, bool_or(r.relname = 'mailglass_events') AS has_ledger,
       bool_or(r.relname = 'mailglass_suppressions') AS is_mailglass_s,
       ARRAY(SELECT DISTINCT l.schema
               FROM relation AS o JOIN relation AS l ON pg_has_role(o.relowner, l.relowner, 'MEMBER')
              WHERE o.schema = r.schema AND o.relname = ANY (CAST(:ours AS text[])) AND l.relname = 'mailglass_events'
              ORDER BY 1) AS own_ledgers,
       count(*) FILTER (WHERE r.relname = ANY (CAST(:ours AS text[]))) = cardinality(CAST(:ours AS text[])) AS has_all
  FROM relation AS r
 GROUP BY r.schema ORDER BY 1
"""


class SchemaTables(NamedTuple):
    """A schema of the database with tables of Mailglass's or ours.

    Attributes:
        name: The schema.
        has_ledger: It has a `mailglass_events`.
        is_mailglass_s: Mailglass's own migrations made the tables.
        own_ledgers: The schemas with a `mailglass_events` whose owner could own tables of this package here; none if
            there is no such table here.
        has_all: It has all tables of this package.
    """

    name: str
    has_ledger: bool
    is_mailglass_s: bool
    own_ledgers: Sequence[str]
    has_all: bool


def find_relocation(schemas: Iterable[SchemaTables], configured: str) -> Problem | None:
    """Return a problem if Mailglass's tables have moved to another schema and ours have not, with its remedy.

    Args:
        schemas: The schemas of the database.
        configured: The schema of MAILGLASS_DATABASE_SCHEMA. If it has the ledger and all of our tables, it is no move.
    """
    by_name = {schema.name: schema for schema in schemas}
    if configured in by_name and by_name[configured].has_ledger and by_name[configured].has_all:
        return None
    moves = [
        (left.name, ledger)
        for left in by_name.values()
        for ledger in left.own_ledgers
        if not left.has_ledger and by_name[ledger].is_mailglass_s and configured in (left.name, ledger)
    ]
    if not moves:
        return None
    left, ledgers = (" or ".join(dict.fromkeys(names)) for names in zip(*moves, strict=True))
    setting = (
        ""
        if configured in by_name and by_name[configured].has_ledger
        else (f", and set MAILGLASS_DATABASE_SCHEMA to {ledgers}")
    )
    return Problem(
        f"schema {left} has our tables but no mailglass_events, which schema {ledgers} has",
        "if Mailglass's tables have moved, move ours as"
        f" {docs_url('with-mailglass.md#move-our-tables-to-its-schema')} describes{setting}",
    )
