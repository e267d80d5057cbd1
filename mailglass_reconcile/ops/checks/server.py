"""The database server: whether this process can connect, and whether it accepts writes."""

from __future__ import annotations

from collections.abc import Iterator

from mailglass_reconcile.ops.checks.check import CheckContext, Finding, check, error, ok

OLDEST_SERVER = 150_000

_SERVER = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::integer AS number,
       s.reset_val = 'on' AS read_only,
       -- Not that of a single role or connection, which may be meant to read only.
       s.source NOT IN ('user', 'database user', 'client', 'session') AS is_for_all,
       CASE s.source WHEN 'database' THEN format('ALTER DATABASE %I', current_database())
                     WHEN 'user' THEN format('ALTER ROLE %I', session_user)
                     WHEN 'database user' THEN format('ALTER ROLE %I IN DATABASE %I', session_user, current_database())
        END AS changed_by,
       current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS replica
  FROM pg_settings AS s WHERE s.name = 'default_transaction_read_only'
"""


@check("server", fast=True)
def server(context: CheckContext) -> Iterator[Finding]:
    """The server is recent, accepts writes, and stores every character."""
    row = context.tx.execute(_SERVER).one()
    if row.number < OLDEST_SERVER:
        yield error(f"PostgreSQL {row.version} is too old", "use PostgreSQL 15 or later")
    elif row.encoding != "UTF8":
        yield error(
            f"the database is encoded in {row.encoding}, which cannot hold every address and id",
            "create a database with ENCODING 'UTF8', and let MAILGLASS_DATABASE_URL name it",
        )
    elif row.replica and context.is_full:  # the dashboard may read a replica
        yield error("this server is a replica, which accepts no writes", "set MAILGLASS_DATABASE_URL to the primary")
    elif row.read_only and (row.is_for_all or context.is_full):
        yield error(
            "transactions are read-only by default (default_transaction_read_only): nothing can be recorded or linked",
            f"{row.changed_by} RESET default_transaction_read_only"
            if row.changed_by
            else "set default_transaction_read_only = off in postgresql.conf, or where this process sets it",
        )
    else:
        yield ok(f"PostgreSQL {row.version}")
