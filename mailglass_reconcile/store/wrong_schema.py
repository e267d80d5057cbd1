"""Whether the tables are in another schema than the one that is set, or in two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa

from mailglass_reconcile.errors import ConfigurationError, DatabaseRefusedError
from mailglass_reconcile.settings import Settings

VERSION_TABLE = "mailglass_reconcile_version"
"""Alembic's table, which has the revision."""

# Mailglass's own tables are told by one that `migrate` does not make.
_LEDGERS = """
SELECT n.nspname::text AS schema,
       EXISTS (SELECT FROM pg_class AS s WHERE s.relnamespace = n.oid AND s.relname = 'mailglass_suppressions')
         AS mailglass_s
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.relname = 'mailglass_events' AND c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' ORDER BY 1
"""

_HAS_OURS = """
SELECT EXISTS (SELECT FROM pg_class AS o JOIN pg_class AS v ON v.relowner = o.relowner
                WHERE o.oid = to_regclass(:open_orphans) AND v.oid = to_regclass(:version)
                  AND (o.relkind, v.relkind) = ('r', 'r'))
"""


_IS_THERE = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema)"


class Reading(Protocol):
    """What is needed of a transaction, which looks here itself if a table is missing."""

    schema: str
    settings: Settings

    def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> sa.CursorResult[*tuple[Any, ...]]:
        """Run one statement."""

    def name_of(self, relation: str) -> str:
        """Return a relation's quoted name with its schema."""


class Wrong(NamedTuple):
    """What is wrong, and the step that cures it."""

    message: str
    remedy: str

    def __str__(self) -> str:
        """Return both in one sentence."""
        return f"{self.message}: {self.remedy}"


class Ledgers(NamedTuple):
    """The schemas that have a ledger: ours, and others; of each, whether Mailglass itself made the tables."""

    here: bool | None
    others: Mapping[str, bool]


def is_there(tx: Reading) -> bool:
    """Whether the database has our schema."""
    return bool(tx.execute(_IS_THERE, {"schema": tx.schema}).scalar_one())


def ledgers(tx: Reading) -> Ledgers:
    """Return which schemas of the database have a ledger; `here` is None if ours has none."""
    found = {row.schema: row.mailglass_s for row in tx.execute(_LEDGERS)}
    return Ledgers(found.pop(tx.schema, None), found)


def without_ledger(tx: Reading, found: Ledgers) -> Wrong | None:
    """Return what is wrong and what to do if our tables are there without Mailglass's, or None."""
    here, others = found
    names = {"open_orphans": tx.name_of("mailglass_open_orphans"), "version": tx.name_of(VERSION_TABLE)}
    if here is not None or not tx.execute(_HAS_OURS, names).scalar_one():
        return None
    if others:
        return Wrong(
            f"schema {tx.schema} has our tables but no mailglass_events, which schema {', '.join(others)} has",
            f"set MAILGLASS_DATABASE_SCHEMA to {' or '.join(others)}, then run `mailglass-reconcile migrate`",
        )
    return Wrong(
        f"schema {tx.schema} has our tables but no mailglass_events",
        "Mailglass was rolled back, or its tables were dropped. Run Mailglass's own migrations, then"
        " `mailglass-reconcile migrate`; or remove our tables with `mailglass-reconcile migrate --remove`",
    )


def elsewhere(tx: Reading, found: Ledgers) -> Wrong | None:
    """Return what is wrong and what to do if our schema has no ledger and another one has, or None."""
    if found.here is not None or not found.others:
        return None
    return Wrong(
        f"schema {tx.schema} has no mailglass_events, but schema {', '.join(found.others)} has",
        f"set MAILGLASS_DATABASE_SCHEMA to {' or '.join(found.others)}",
    )


def require_ledger(tx: Reading) -> Ledgers:
    """Refuse a schema without a ledger if it is known where the ledger is, or that Mailglass was rolled back.

    Return what `ledgers` found.
    """
    found = ledgers(tx)
    stopped = without_ledger(tx, found)
    if stopped:
        raise DatabaseRefusedError(str(stopped))
    unset = elsewhere(tx, found)
    if unset:
        raise ConfigurationError(str(unset))
    return found


def second_set(tx: Reading, found: Ledgers) -> Wrong | None:
    """Return a warning if another schema has a ledger that may be the one that is meant, or None."""
    here, others = found
    if here is None or not others:
        return None
    real = [name for name, mailglass_s in others.items() if mailglass_s and not here]
    if real:
        return Wrong(
            f"schema {tx.schema} has tables that `migrate` made, and schema {', '.join(real)} has Mailglass's own,"
            " which are not used",
            f"set MAILGLASS_DATABASE_SCHEMA to {' or '.join(real)} to use those",
        )
    if "database_schema" not in tx.settings.model_fields_set:
        return Wrong(
            f"MAILGLASS_DATABASE_SCHEMA is not set, and schema {', '.join(others)} has a ledger too",
            f"set it to {tx.schema}, or to the schema that is meant",
        )
    return None
