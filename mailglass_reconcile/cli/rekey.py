"""The subcommand `rekey`: the keys of open orphans are computed again."""

from __future__ import annotations

import click

from mailglass_reconcile.ops import rekey as rekeying
from mailglass_reconcile.rules.wording import counted


@click.command(epilog="Example: mailglass-reconcile rekey")
def rekey() -> None:
    """Compute the keys of all open orphans again, after a key rule was corrected.

    Rules of your own are loaded from the modules that MAILGLASS_IMPORTS names.
    """
    click.echo(f"computed the keys of {counted(rekeying.rekey(), 'open orphan')}")
