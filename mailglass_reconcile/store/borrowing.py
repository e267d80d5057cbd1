"""A caller's own transaction, lent to this package's statements and given back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from mailglass_reconcile.errors import ConfigurationError
from mailglass_reconcile.rules import handlers
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.database import SEARCH_PATH, Transaction

_BORROW_SCOPE = """
SELECT current_setting('client_encoding') AS client_encoding, current_setting('search_path') AS search_path,
       current_setting('TimeZone') AS time_zone, current_setting('row_security') AS row_security,
       current_setting('array_nulls') AS array_nulls, current_setting('enable_seqscan') AS seqscan,
       current_setting('enable_hashjoin') AS hashjoin, current_setting('enable_mergejoin') AS mergejoin,
       current_setting('enable_bitmapscan') AS bitmapscan, set_config('enable_bitmapscan', 'off', true),
       set_config('client_encoding', 'UTF8', true), set_config('search_path', :path, true),
       set_config('TimeZone', 'UTC', true), set_config('row_security', 'off', true),
       set_config('array_nulls', 'on', true), set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)
"""

_RETURN_SCOPE = """
SELECT set_config('search_path', :search_path, true), set_config('TimeZone', :time_zone, true),
       set_config('row_security', :row_security, true), set_config('array_nulls', :array_nulls, true),
       set_config('enable_seqscan', :seqscan, true), set_config('enable_hashjoin', :hashjoin, true),
       set_config('enable_mergejoin', :mergejoin, true), set_config('enable_bitmapscan', :bitmapscan, true),
       set_config('client_encoding', :client_encoding, true)
"""


@contextmanager
def borrowed(connection: sa.Connection, settings: Settings) -> Iterator[Transaction]:
    """Use a caller's transaction in this package's scope, under a savepoint, and give its own settings back at the end.

    If the block raises, it costs the savepoint only: what the block did is undone, the settings with it, and the
    caller's transaction continues.

    Raises:
        ConfigurationError: The connection is in autocommit mode, or psycopg2's own text encoding is not UTF8.
    """
    driver = connection.connection.dbapi_connection
    if getattr(driver, "autocommit", False):
        raise ConfigurationError(
            "the connection's isolation_level is AUTOCOMMIT, so its statements could not be kept or undone together:"
            " pass one in a transaction, such as that of `with engine.begin() as connection`"
        )
    # psycopg2 does not notice that a statement changes the encoding; the other drivers do.
    if getattr(driver, "encoding", "UTF8") != "UTF8":
        raise ConfigurationError(
            'the connection\'s client_encoding is not UTF8: pass `client_encoding="utf8"` to create_engine'
        )
    with connection.begin_nested():
        tx = Transaction(connection, settings.database_schema, handlers.recorded_types(settings.hook_types))
        before = dict(tx.execute(_BORROW_SCOPE, {"path": SEARCH_PATH}).mappings().one())
        del before["set_config"]
        yield tx
        tx.execute(_RETURN_SCOPE, before)
