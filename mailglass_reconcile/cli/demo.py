"""The subcommand `demo`: orphans being linked, on servers of its own."""

from __future__ import annotations

import sys

import click


@click.command(epilog="Example: mailglass-reconcile demo")
def demo() -> None:
    """Watch orphans being linked on servers of its own; needs the extra `demo`."""
    from mailglass_reconcile import demo as demonstration  # noqa: PLC0415 - its servers are an extra

    sys.exit(demonstration.main())
