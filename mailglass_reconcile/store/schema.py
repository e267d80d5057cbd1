"""What this version needs of the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mailglass_reconcile.store import revision, script, wrong_schema
from mailglass_reconcile.store.database import Transaction, array_literal

VERSION = revision.VERSION
VERSION_TABLE = wrong_schema.VERSION_TABLE
TABLES: Mapping[str, str] = {name: step.columns[0] for name, step in script.of_kind("table").items()}
"""Our tables, each with the column by which it is recognised as ours, in every version."""


class Index(NamedTuple):
    """An index: its table, and what is indexed, as SQL that does not depend on a search_path.

    `columns`: an index of any name that begins with these does as well; if it must be unique, one on exactly these.
    `partitionable`: one that is not unique does as well, because the key of a partitioned table has more columns.
    """

    table: str
    on: str
    unique: bool = False
    columns: str = ""
    partitionable: bool = False

    @property
    def must_be_unique(self) -> bool:
        """Whether a statement relies on it for more than speed."""
        return self.unique and not self.partitionable

    @property
    def where(self) -> str:
        """Its condition, as Postgres writes it, or an empty string."""
        return f"({condition})" if (condition := self.on.partition(" WHERE ")[2]) else ""


INDEXES: Mapping[str, Index] = {
    name: Index(
        step.table,
        step.indexed,
        unique=step.is_unique,
        columns="status inserted_at" if step.table == "mailglass_webhook_events" else "",
    )
    for name, step in script.of_kind("index").items()
}
"""Our indexes, on our tables and on Mailglass's."""

RECIPIENT_KEY = INDEXES["mailglass_deliveries_reconcile_idx"].on.partition("  (")[2].removesuffix("))")
"""What our index on deliveries has of a recipient: equal wherever addresses compare as equal."""

MAILGLASS_INDEXES: Mapping[str, Index] = {
    "mailglass_events_pkey": Index("mailglass_events", "(id)", unique=True, columns="id", partitionable=True),
    "mailglass_deliveries_pkey": Index("mailglass_deliveries", "(id)", unique=True, columns="id", partitionable=True),
    "mailglass_events_idempotency_key_idx": Index(
        "mailglass_events",
        "(idempotency_key) WHERE idempotency_key IS NOT NULL",
        unique=True,
        columns="idempotency_key",
    ),
    "mailglass_deliveries_provider_msg_id_idx": Index(
        "mailglass_deliveries",
        "(provider, provider_message_id) WHERE provider_message_id IS NOT NULL",
        unique=True,
        columns="provider provider_message_id",
    ),
    "mailglass_events_delivery_idx": Index(
        "mailglass_events",
        "(delivery_id, occurred_at) WHERE delivery_id IS NOT NULL",
        columns="delivery_id occurred_at",
    ),
    "mailglass_events_tenant_recent_idx": Index(
        "mailglass_events", "(tenant_id, inserted_at DESC)", columns="tenant_id inserted_at"
    ),
    "mailglass_events_needs_reconcile_idx": Index(
        "mailglass_events",
        "(tenant_id, inserted_at) WHERE needs_reconciliation = true",
        columns="tenant_id inserted_at",
    ),
    "mailglass_deliveries_tenant_recent_idx": Index(
        "mailglass_deliveries", "(tenant_id, last_event_at DESC)", columns="tenant_id last_event_at"
    ),
    "mailglass_deliveries_tenant_stream_terminal_idx": Index(
        "mailglass_deliveries",
        "(tenant_id, stream, terminal, last_event_at DESC)",
        columns="tenant_id stream terminal last_event_at",
    ),
}
"""Indexes of Mailglass's that our statements rely on, unique ones for their ON CONFLICT; under any name."""

KEYS: Mapping[str, Index] = {
    "mailglass_open_orphans_pkey": Index("mailglass_open_orphans", "(event_id)", unique=True, columns="event_id"),
    "mailglass_open_orphan_ids_pkey": Index(
        "mailglass_open_orphan_ids", "(event_id, position)", unique=True, columns="event_id position"
    ),
    "mailglass_reconcile_runs_pkey": Index("mailglass_reconcile_runs", "(id)", unique=True, columns="id"),
    "mailglass_handled_types_pkey": Index(
        "mailglass_handled_types", "(type, handler)", unique=True, columns="type handler"
    ),
    "mailglass_handler_outbox_pkey": Index(
        "mailglass_handler_outbox", "(event_id, handler)", unique=True, columns="event_id handler"
    ),
    "mailglass_webhook_certificates_pkey": Index("mailglass_webhook_certificates", "(url)", unique=True, columns="url"),
}
"""The primary keys of our tables."""

ALL_INDEXES: Mapping[str, Index] = {**KEYS, **INDEXES, **MAILGLASS_INDEXES}

TRIGGERS = tuple(script.of_kind("trigger"))
"""Each trigger calls the function of its own name."""
GUARD = "mailglass_events_no_truncate"
"""The trigger against TRUNCATE, and its function; not every installation has it."""

IMMUTABLE = "mailglass_events_immutable_trigger"
"""The trigger that refuses UPDATE and DELETE, by the function mailglass_raise_immutability; ours on tables that
`migrate` made."""

RETENTION = ("mailglass_prune_events", "mailglass_prune_deliveries")
"""The functions that delete what is old; only on tables that `migrate` made."""

FUNCTIONS = tuple(name for name in script.of_kind("function") if name not in TRIGGERS)
"""The functions that everybody may call."""

# Mailglass's own migrations make `mailglass_suppressions`; ours make the functions of retention, and one that refuses
# every other DELETE.
_MADE_BY_MAILGLASS = """
SELECT bool_or(c.relname = 'mailglass_suppressions')
       OR bool_or(c.relname = 'mailglass_events')
          AND NOT EXISTS (SELECT FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
                           WHERE n.nspname = :schema
                             AND (p.proname = 'mailglass_raise_immutability'
                                  AND p.prosrc LIKE '%mailglass_reconcile.retention%'
                                  OR p.proname = 'mailglass_prune_events'))
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relname IN ('mailglass_suppressions', 'mailglass_events')
"""

_TRIGGERS = """
SELECT w.name,
       CASE WHEN t.oid IS NULL THEN 'is missing'
            WHEN p.proname NOT IN (w.name, CASE w.name WHEN 'mailglass_events_immutable_trigger'
                                                       THEN 'mailglass_raise_immutability' ELSE w.name END)
                 OR n.nspname <> :schema THEN 'calls a function that is not ours'
            WHEN t.tgenabled NOT IN ('O', 'A') THEN 'is disabled' END AS fault
  FROM unnest(CAST(:names AS text[])) AS w (name)
  LEFT JOIN pg_trigger AS t ON t.tgrelid = to_regclass(:events) AND t.tgname = w.name
  LEFT JOIN pg_proc AS p ON p.oid = t.tgfoid
  LEFT JOIN pg_namespace AS n ON n.oid = p.pronamespace
"""

# One with given columns may have any name; one over expressions is known by its own.
_INDEXES = """
SELECT w.name, i.indisvalid IS NOT NULL AS invalid
  FROM unnest(CAST(:names AS text[]), CAST(:tables AS text[]), CAST(:columns AS text[]), CAST(:conditions AS text[]),
              CAST(:unique AS boolean[])) AS w (name, tab, columns, condition, is_unique)
  LEFT JOIN pg_index AS i ON i.indexrelid = to_regclass(format('%I.%I', CAST(:schema AS text), w.name))
 WHERE CASE WHEN w.columns = '' THEN i.indisvalid IS NOT TRUE
            ELSE NOT EXISTS (
              SELECT FROM pg_index AS o
               WHERE o.indrelid = to_regclass(format('%I.%I', CAST(:schema AS text), w.tab)) AND o.indisvalid
                 AND (NOT w.is_unique
                      OR o.indisunique AND o.indnkeyatts = cardinality(string_to_array(w.columns, ' ')))
                 AND CASE WHEN o.indpred IS NULL THEN w.is_unique OR w.condition = ''
                          ELSE pg_get_expr(o.indpred, o.indrelid) = w.condition END
                 AND string_to_array(w.columns, ' ') = ARRAY(
                       SELECT a.attname::text FROM unnest(o.indkey::smallint[]) WITH ORDINALITY AS k (attnum, position)
                         JOIN pg_attribute AS a ON a.attrelid = o.indrelid AND a.attnum = k.attnum
                        WHERE k.position <= cardinality(string_to_array(w.columns, ' ')) ORDER BY k.position)) END
"""

MISSING, INVALID = "is missing", "is invalid"
"""The faults of an index."""

OUR_OBJECTS = frozenset({*TABLES, *INDEXES, VERSION_TABLE})
MAILGLASS_TABLES = frozenset({"mailglass_events", "mailglass_deliveries", "mailglass_webhook_events"})
"""What `migrate` makes if Mailglass has not; an application without Mailglass has no models of them."""


def made_by_mailglass(tx: Transaction) -> bool:
    """Whether Mailglass's own migrations made the tables; False too if there are none."""
    return bool(tx.execute(_MADE_BY_MAILGLASS, {"schema": tx.schema}).scalar_one())


def trigger_faults(tx: Transaction, names: Sequence[str] = TRIGGERS) -> dict[str, str]:
    """Return what is wrong with our triggers on the ledger, by name, such as `is disabled`; nothing if all are at work.

    A trigger that is missing or disabled means that new orphans are not noticed.
    """
    wanted = {"names": array_literal(names), "events": tx.name_of("mailglass_events"), "schema": tx.schema}
    rows = tx.execute(_TRIGGERS, wanted)
    return {name: fault for name, fault in rows.all() if fault}


def index_faults(tx: Transaction, wanted: Mapping[str, Index] = INDEXES) -> dict[str, str]:
    """Return which of the *wanted* indexes are `MISSING` or `INVALID`, by name."""
    rows = tx.execute(
        _INDEXES,
        {
            "schema": tx.schema,
            "names": array_literal(wanted),
            "tables": array_literal(index.table for index in wanted.values()),
            "columns": array_literal(index.columns for index in wanted.values()),
            "conditions": array_literal(index.where for index in wanted.values()),
            "unique": array_literal(str(index.must_be_unique) for index in wanted.values()),
        },
    )
    return {name: INVALID if invalid else MISSING for name, invalid in rows.all()}


def require_migrated(tx: Transaction) -> None:
    """Refuse a database that is not at `VERSION`."""
    revision.require(tx.execute(revision.READ).scalar_one())


def include_object(item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Keep Alembic's autogenerate from dropping our tables: pass it as `include_object` in your `env.py`.

    Our tables and indexes are left out, and so are Mailglass's tables that your metadata does not have.

    Args:
        item: The schema object.
        name: Its name.
        type_: `table`, `index`, `column`, …
        reflected: Whether it was found in the database.
        compare_to: What the application's metadata has in its place, or None.
    """
    if not reflected or compare_to is not None:
        return True
    if type_ == "table":
        return name not in OUR_OBJECTS | MAILGLASS_TABLES
    return name not in OUR_OBJECTS and getattr(getattr(item, "table", None), "name", None) not in OUR_OBJECTS
