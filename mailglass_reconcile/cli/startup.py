"""The options of a server, and the first check of a long-running command: refuse a database that is not migrated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import DatabaseUnavailableError
from mailglass_reconcile.store import installed


def require_schema() -> None:
    """Raise an error if the database is not migrated; ignore a server that cannot be reached: it may start later."""
    with suppress(DatabaseUnavailableError), runtime.database().reading() as tx:
        installed.require_migrated(tx)


def address_options(port: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add `--host` and `--port`, whose default is *port*, to a command that serves HTTP."""
    host_option = click.option(
        "--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Listen on this address or name."
    )
    port_option = click.option(
        "--port",
        type=click.IntRange(0, 65_535),
        default=port,
        show_default=True,
        metavar="PORT",
        help="Listen on this port.",
    )
    return lambda function: host_option(port_option(function))
