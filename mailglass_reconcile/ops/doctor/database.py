"""The connection to Postgres, the server, and the rights of this role; each check is a read-only transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import DISK_FULL, ConfigurationError, database_errors, sqlstate
from mailglass_reconcile.ops.doctor.finding import Finding, attempt, error, ok, warning
from mailglass_reconcile.rules import unreachable
from mailglass_reconcile.store.database import Connected, Transaction
from mailglass_reconcile.store.engines import server_of

STATEMENT_TIMEOUT_MS = 2_000
OLDEST_SERVER = 150_000

DatabaseCheck = Callable[[Transaction], Iterable[Finding]]

_SERVER = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::integer AS number,
       pg_encoding_to_char(d.encoding)::text AS encoding, quote_ident(d.datname) AS database,
       (SELECT reset_val FROM pg_settings WHERE name = 'TimeZone') AS time_zone,
       (SELECT reset_val FROM pg_settings WHERE name = 'default_transaction_read_only') = 'on' AS read_only,
       pg_is_in_recovery() AS standby, quote_ident(current_user) AS role
  FROM pg_database AS d WHERE d.datname = current_database()
"""

# What does not fit into so little memory goes into a temporary file, on the disk of the database's own tables. Postgres
# has no function that says how much room there is.
_LITTLE_MEMORY = "SELECT set_config('work_mem', '64kB', true)"
_SPILL = """
SELECT max(length(s.filling))
  FROM (SELECT repeat('x', 1000) AS filling FROM generate_series(1, :kilobytes) AS n ORDER BY n DESC) AS s
"""
SPILLED_KILOBYTES = 1_000

_UTC = frozenset(
    {"UTC", "Etc/UTC", "UCT", "Etc/UCT", "Zulu", "Etc/Zulu", "GMT", "Etc/GMT", "Universal", "Etc/Universal"}
)


def each(connected: Connected, checks: Iterable[tuple[str, DatabaseCheck]]) -> Iterator[Finding]:
    """Yield what the checks find; one that fails is a finding, and after a lost connection none is tried."""

    def run(check: DatabaseCheck) -> list[Finding]:
        with database_errors(), connected.reading(STATEMENT_TIMEOUT_MS) as tx:
            return list(check(tx))

    for name, check in checks:
        if connected.connection.invalidated or connected.connection.closed:
            return
        yield from attempt(name, partial(run, check))


@contextmanager
def opened(found: list[Finding]) -> Iterator[Connected | None]:
    """Connect, note in *found* how that went, and yield the connection, or None."""
    try:
        database = runtime.database()
    except ConfigurationError as fault:
        step = "set MAILGLASS_DATABASE_URL to postgresql://user:password@host/name"
        found.append(error("database", str(fault), step))
        yield None
        return
    server = server_of(database.engine)
    try:
        connection = database.engine.connect()
    except sa.exc.DBAPIError as fault:
        said, remedy = unreachable.told_apart(fault, server)
        found.append(error("database", f"cannot connect to {server.kind} at {server.place}: {said}", remedy))
        yield None
        return
    with connection:
        found.append(ok("database", f"connected to {server.kind} at {server.place}"))
        yield Connected(connection, database.settings)


def server(tx: Transaction) -> Iterator[Finding]:
    """Check the server's version, whether it can be written to, the encoding and the time zone."""
    row = tx.execute(_SERVER).one()
    if row.number < OLDEST_SERVER:
        yield error("server", f"PostgreSQL {row.version} is too old", "use PostgreSQL 15 or later")
    elif row.standby:
        yield error(
            "server", "this server is a replica, which takes no writes", "set MAILGLASS_DATABASE_URL to the primary"
        )
    elif row.read_only:
        yield error(
            "server",
            "transactions are read-only by default (default_transaction_read_only), so no sweep can link",
            f"ALTER ROLE {row.role} SET default_transaction_read_only = off; or the same for the database or server",
        )
    else:
        yield ok("server", f"PostgreSQL {row.version}, a primary")
    if row.encoding == "UTF8":
        yield ok("encoding", "the database's encoding is UTF8")
    else:
        yield warning(
            "encoding",
            f"the database's encoding is {row.encoding}: events with other characters cannot be stored or read",
            "dump the database, create one with ENCODING 'UTF8', and restore there",
        )
    if row.time_zone.removeprefix("Etc/") in _UTC:
        yield ok("time_zone", "sessions of this role are in UTC")
    else:
        yield ok(
            "time_zone",
            f"sessions of this role are in the time zone {row.time_zone}; an event's arrival does not depend on it,"
            " unless its id is no UUIDv7 and its writer gives inserted_at in local time",
        )


def disk(tx: Transaction) -> Iterator[Finding]:
    """Check that Postgres can still write to its disk, by a temporary file of a megabyte, which goes away at once."""
    tx.execute(_LITTLE_MEMORY)
    try:
        tx.execute(_SPILL, {"kilobytes": SPILLED_KILOBYTES})
    except sa.exc.DBAPIError as fault:
        if sqlstate(fault) != DISK_FULL:
            raise
        yield error(
            "disk",
            "the disk of the database is full (SQLSTATE 53100): no webhook is stored and nothing is linked",
            "make room on the disk of the database server; sweeps then continue by themselves",
        )
    else:
        yield ok("disk", "the database can write to its disk")
