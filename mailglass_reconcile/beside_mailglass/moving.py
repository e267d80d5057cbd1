"""Mailglass's tables have moved to another schema, as its version 2.0 moves them: ours follow."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from mailglass_reconcile.errors import DatabaseRefusedError, database_errors
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import schema
from mailglass_reconcile.store.database import Database, in_schema
from mailglass_reconcile.store.migration import state
from mailglass_reconcile.store.migration.lock import one_at_a_time
from mailglass_reconcile.store.migration.steps import Steps

# Our tables in a schema without a ledger, although this one has a ledger and none of them.
_MOVED_FROM = """
SELECT n.nspname::text
  FROM pg_class AS v JOIN pg_namespace AS n ON n.oid = v.relnamespace
  JOIN pg_class AS o ON o.relnamespace = n.oid AND o.relname = 'mailglass_open_orphans' AND o.relkind = 'r'
 WHERE v.relname = :version AND v.relkind = 'r' AND pg_get_userbyid(v.relowner) = current_user
   AND pg_get_userbyid(o.relowner) = current_user
   AND NOT EXISTS (SELECT FROM pg_class AS e WHERE e.relnamespace = n.oid AND e.relname = 'mailglass_events')
   AND to_regclass(:events) IS NOT NULL AND to_regclass(:open_orphans) IS NULL
 ORDER BY 1
"""


def follow(engine: sa.Engine, settings: Settings, tell: Callable[[str], None], *, plan: bool = False) -> bool:
    """Move our tables after Mailglass's, with history and waiting events; return whether there was anything to move.

    ALTER TABLE ... SET SCHEMA took the triggers along. Their functions name the old schema, so they go; the migration
    that has to follow makes new ones, and adds what was missed.
    """
    with database_errors(), Database(engine, settings).reading() as tx:
        names = {"version": schema.VERSION_TABLE, **tx.names_of("events", "open_orphans")}
        places = list(tx.execute(_MOVED_FROM, names).scalars())
        if not places:
            return False
        if len(places) > 1:
            raise DatabaseRefusedError(
                f"nothing was changed: schemas {', '.join(places)} all have our tables and no mailglass_events:"
                " remove those that are not needed with `mailglass-reconcile migrate --remove`"
            )
        [place] = places
        tables = state.tables_in(tx, place)
    ours = (*schema.TRIGGERS, schema.GUARD, *schema.RETENTION, *schema.FUNCTIONS)
    dropped = [f"DROP FUNCTION IF EXISTS {in_schema(f'{{schema}}.{name}', place)} CASCADE;" for name in ours]
    moved = [f"ALTER TABLE {table} SET SCHEMA {{schema}};" for table in tables]
    title = f"move our tables here from schema {place}"
    with database_errors(), one_at_a_time(engine, settings):
        Steps(engine, settings, tell, plan=plan).run(title, "\n".join([*dropped, *moved]))
    return True
