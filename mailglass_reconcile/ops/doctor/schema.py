"""What the database has of ours: the revision, the triggers that keep the open orphans, the indexes."""

from __future__ import annotations

from collections.abc import Iterator

from mailglass_reconcile.ops.doctor.finding import Finding, error, ok, warning
from mailglass_reconcile.store import elsewhere, schema
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.migration import preflight, state

MIGRATE = "mailglass-reconcile migrate"

_PLACE = """
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema) AS there,
       (SELECT string_agg(n.nspname::text, ', ') FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE c.relname = 'mailglass_events' AND c.relkind IN ('r', 'p') AND n.nspname <> :schema
           AND n.nspname !~ '^pg_') AS elsewhere
"""

_INVALID = """
SELECT c.relname::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
  JOIN pg_class AS t ON t.oid = i.indrelid JOIN pg_namespace AS n ON n.oid = t.relnamespace
 WHERE n.nspname = :schema AND t.relname = ANY (CAST(:tables AS text[])) AND NOT i.indisvalid ORDER BY 1
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
    version, found = state.version(tx), elsewhere.ledgers(tx)
    stopped = elsewhere.without_ledger(tx, found)
    if stopped:
        message, _, step = stopped.partition(": ")
        yield error("schema", message, step)
    elif version == schema.VERSION:
        second = elsewhere.second_set(tx, found)
        if second:
            message, _, step = second.partition(": ")
            yield warning("schema", message, step)
        else:
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
    faults = [f"trigger {name} {fault}" for name, fault in schema.trigger_faults(tx).items()]
    if faults:
        yield error(
            "triggers",
            f"on mailglass_events, {', '.join(faults)}: new orphans are not noticed",
            f"run `{MIGRATE}`; it also adds the orphans that were missed",
        )
    else:
        yield ok("triggers", "both triggers on mailglass_events are enabled")
    if not schema.made_by_mailglass(tx):
        for name, fault in schema.trigger_faults(tx, [schema.GUARD]).items():
            yield warning("triggers", f"trigger {name} {fault}: TRUNCATE would empty the ledger", f"run `{MIGRATE}`")


def indexes(tx: Transaction) -> Iterator[Finding]:
    """Check that the indexes that sweeps rely on are there, and that none was left half built."""
    found = [
        error("indexes", f"index {name} {fault}: statements read whole tables, or fail", f"run `{MIGRATE}`")
        for name, fault in schema.index_faults(tx).items()
    ]
    tables = ["mailglass_events", "mailglass_deliveries", "mailglass_webhook_events", *schema.TABLES]
    for name in tx.execute(_INVALID, {"schema": tx.schema, "tables": tables}).scalars():
        if name not in schema.INDEXES:
            message = f"index {name} is invalid: an interrupted build left it, and no statement uses it"
            found.append(error("indexes", message, f"REINDEX INDEX CONCURRENTLY {tx.name_of(name)}"))
    columns = {table: set(names.split()) for table, names in schema.UNIQUE.items()}
    for lacking in preflight.missing_indexes(tx, columns, schema.UNIQUE):
        yield error(
            "indexes",
            f"schema {tx.schema} lacks {lacking}: nothing can be linked or recorded safely",
            "run Mailglass's own migrations; on tables that `migrate` made, make the index as"
            " alembic/versions/0001c_open_orphans.py does, or REINDEX it if it is invalid",
        )
    yield from found or [ok("indexes", "all indexes that sweeps need exist and are valid")]
