"""What the database has of ours: the revision, the triggers that keep the open orphans, the indexes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mailglass_reconcile.ops.doctor.finding import Finding, error, ok, warning
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Transaction, in_schema
from mailglass_reconcile.store.migration import preflight, state

MIGRATE = "mailglass-reconcile migrate"

UNIQUE = {"mailglass_deliveries": "provider provider_message_id", "mailglass_events": "idempotency_key"}
"""Mailglass's unique indexes that appending and recording rely on."""

# `migrate` passes a table over that is there, so an index of ours on it is made by hand.
ON_OUR_TABLES = {
    "mailglass_open_orphans_arrival_idx": (
        "CREATE INDEX CONCURRENTLY mailglass_open_orphans_arrival_idx"
        " ON {schema}.mailglass_open_orphans (arrived_at, event_id)"
    ),
    "mailglass_open_orphan_ids_candidate_idx": (
        "CREATE INDEX CONCURRENTLY mailglass_open_orphan_ids_candidate_idx"
        " ON {schema}.mailglass_open_orphan_ids (candidate_id)"
    ),
    "mailglass_reconcile_runs_minute_idx": (
        "CREATE UNIQUE INDEX CONCURRENTLY mailglass_reconcile_runs_minute_idx ON {schema}.mailglass_reconcile_runs"
        " (origin, status, coalesce(tenant_id, ''), date_trunc('minute', started_at)) WHERE kind = 'recent'"
    ),
    "mailglass_reconcile_runs_kind_idx": (
        "CREATE INDEX CONCURRENTLY mailglass_reconcile_runs_kind_idx ON {schema}.mailglass_reconcile_runs (kind, id)"
    ),
    "mailglass_hook_outbox_due_idx": (
        "CREATE INDEX CONCURRENTLY mailglass_hook_outbox_due_idx ON {schema}.mailglass_hook_outbox"
        " (state, type, least(attempts, 1), next_at) WHERE state <> 'dispatched'"
    ),
    "mailglass_hook_outbox_finished_idx": (
        "CREATE INDEX CONCURRENTLY mailglass_hook_outbox_finished_idx ON {schema}.mailglass_hook_outbox"
        " (finished_at) WHERE state = 'dispatched'"
    ),
}

_PLACE = """
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema) AS there,
       (SELECT string_agg(n.nspname::text, ', ') FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.relname = 'mailglass_events' AND c.relkind IN ('r', 'p') AND n.nspname <> :schema
           AND n.nspname !~ '^pg_') AS elsewhere
"""

_TRIGGERS = """
SELECT w.name,
       CASE WHEN t.oid IS NULL THEN 'is missing' WHEN p.proname <> w.name THEN 'calls a function that is not ours'
            WHEN t.tgenabled NOT IN ('O', 'A') THEN 'is disabled' END AS fault
  FROM unnest(CAST(:names AS text[])) AS w (name)
  LEFT JOIN pg_trigger AS t ON t.tgrelid = to_regclass(:events) AND t.tgname = w.name
  LEFT JOIN pg_proc AS p ON p.oid = t.tgfoid
"""

_INVALID = """
SELECT c.relname::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
  JOIN pg_class AS t ON t.oid = i.indrelid JOIN pg_namespace AS n ON n.oid = t.relnamespace
 WHERE n.nspname = :schema AND t.relname = ANY (CAST(:tables AS text[])) AND NOT i.indisvalid ORDER BY 1
"""

_MISSING = """
SELECT w.name FROM unnest(CAST(:names AS text[])) AS w (name)
 WHERE NOT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                    WHERE n.nspname = :schema AND c.relname = w.name AND c.relkind = 'i')
"""


def revision(tx: Transaction) -> Iterator[Finding]:
    """Check that the schema is there, and migrated to what this version needs."""
    row = tx.execute(_PLACE, {"schema": tx.schema}).one()
    if not row.there:
        yield error(
            "schema",
            f"there is no schema {tx.schema} in this database",
            f"set MAILGLASS_DATABASE_SCHEMA{f' to {row.elsewhere}' if row.elsewhere else ''}, or create the schema",
        )
        return
    version = state.version(tx)
    if version == schema.VERSION:
        yield ok("schema", f"schema {tx.schema} is at revision {version}")
    elif version is not None and version > schema.VERSION:
        yield error(
            "schema",
            f"schema {tx.schema} is at revision {version}, this version of mailglass-reconcile knows {schema.VERSION}",
            "install the newer mailglass-reconcile here",
        )
    elif version is None and row.elsewhere:
        yield error(
            "schema",
            f"schema {tx.schema} is not migrated, and schema {row.elsewhere} has mailglass_events",
            f"set MAILGLASS_DATABASE_SCHEMA to {row.elsewhere}, then run `{MIGRATE}`",
        )
    else:
        now = f"at revision {version}" if version else "not migrated"
        yield error("schema", f"schema {tx.schema} is {now}, this version needs {schema.VERSION}", f"run `{MIGRATE}`")


def triggers(tx: Transaction) -> Iterator[Finding]:
    """Check that the triggers on the ledger are at work; without them, new orphans are not seen until the prune."""
    wanted = {"names": list(schema.TRIGGERS), "events": tx.name_of("mailglass_events")}
    faults = [f"{row.name} {row.fault}" for row in tx.execute(_TRIGGERS, wanted) if row.fault]
    if faults:
        yield error(
            "triggers",
            f"on mailglass_events, trigger {', trigger '.join(faults)}: new orphans are not noticed",
            f"run `{MIGRATE}`; it also adds the orphans that were missed",
        )
    else:
        yield ok("triggers", "both triggers on mailglass_events are at work")
    if not state.made_by_mailglass(tx):
        row = tx.execute(_TRIGGERS, {**wanted, "names": [schema.GUARD]}).one()
        if row.fault:
            yield warning(
                "triggers", f"trigger {row.name} {row.fault}: TRUNCATE would empty the ledger", f"run `{MIGRATE}`"
            )


def indexes(tx: Transaction) -> Iterator[Finding]:
    """Check that the indexes that sweeps rely on are there, and that none was left half built."""
    tables = ["mailglass_events", "mailglass_deliveries", "mailglass_webhook_events", *schema.TABLES]
    found = list(_invalid(tx, tx.execute(_INVALID, {"schema": tx.schema, "tables": tables}).scalars().all()))
    names = [*schema.INDEXES, *schema.TABLE_INDEXES]
    found += _missing(tx, tx.execute(_MISSING, {"schema": tx.schema, "names": names}).scalars().all())
    columns = {table: set(names.split()) for table, names in UNIQUE.items()}
    for lacking in preflight.missing_indexes(tx, columns, UNIQUE):
        yield error(
            "indexes",
            f"schema {tx.schema} lacks {lacking}: nothing can be linked or recorded safely",
            "run Mailglass's own migrations; on tables that `migrate` made, make the index as"
            " alembic/versions/0001_open_orphans.py does, or REINDEX it if it is invalid",
        )
    yield from found or [ok("indexes", "all indexes that sweeps need are there and valid")]


def _invalid(tx: Transaction, names: Sequence[str]) -> Iterator[Finding]:
    for name in names:
        step = f"run `{MIGRATE}`" if name in schema.INDEXES else f"REINDEX INDEX CONCURRENTLY {tx.name_of(name)}"
        yield error("indexes", f"index {name} is invalid: an interrupted build left it, and no statement uses it", step)


def _missing(tx: Transaction, names: Sequence[str]) -> Iterator[Finding]:
    for name in names:
        made = in_schema(ON_OUR_TABLES.get(name, ""), tx.schema)
        yield error(
            "indexes",
            f"index {name} is missing: statements read whole tables, or fail",
            made if name in ON_OUR_TABLES else f"run `{MIGRATE}`",
        )
