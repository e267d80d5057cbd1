"""The database server: whether this process can connect, and whether it accepts writes."""

from __future__ import annotations

from collections.abc import Iterator
from time import time

from mailglass_reconcile.ops.checks.check import CheckContext, Finding, check, error, ok, warning
from mailglass_reconcile.rules.humanize import format_duration

OLDEST_SERVER = 150_000
MAX_CLOCK_DIFFERENCE_SECONDS = 30
"""Some providers' signatures are refused from five minutes on."""

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
            f"BEGIN READ WRITE; {row.changed_by} RESET default_transaction_read_only; COMMIT"
            if row.changed_by
            else "set default_transaction_read_only = off in postgresql.conf, or where this process sets it",
        )
    else:
        yield ok(f"PostgreSQL {row.version}")


@check("clock")
def clock(context: CheckContext) -> Iterator[Finding]:
    """This machine's clock is that of the database; of the machines that receive webhooks, this says nothing."""
    began = time()
    databases: float = context.tx.execute("SELECT extract(epoch FROM clock_timestamp())::float8").scalar_one()
    difference = (began + time()) / 2 - databases
    if abs(difference) > MAX_CLOCK_DIFFERENCE_SECONDS:
        yield warning(
            f"the clock of this machine, where the doctor runs, is {format_duration(abs(difference))}"
            f" {'ahead of' if difference > 0 else 'behind'} the database's",
            "set the one that is wrong; if webhooks are received on another machine, run the doctor there, too",
        )
    else:
        yield ok("the clock of this machine, where the doctor runs, is that of the database")
