"""The command `mailglass-reconcile`. Exit codes: 0 ok, 1 partial or failed, 2 usage, 130 interrupted."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import click

from mailglass_reconcile.cli.doctor import doctor
from mailglass_reconcile.cli.explaining import explain
from mailglass_reconcile.cli.following import follow
from mailglass_reconcile.cli.handling import dispatch
from mailglass_reconcile.cli.listening import listen
from mailglass_reconcile.cli.looking import status
from mailglass_reconcile.cli.orphans import orphans
from mailglass_reconcile.cli.schema import migrate
from mailglass_reconcile.cli.serving import serve
from mailglass_reconcile.cli.sweeping import INTERRUPTED, sweep
from mailglass_reconcile.cli.working import demo, prune, rekey
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.settings import ENV_PREFIX, Settings

_SETTINGS = "All settings: " + ", ".join(f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields) + "."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_SETTINGS)
@click.version_option(package_name="mailglass-reconcile")
def command() -> None:
    """Link e-mail webhook events that arrived before their delivery had been committed.

    Settings come from environment variables. MAILGLASS_DATABASE_URL and MAILGLASS_REDIS_URL name the servers;
    everything else has a default. `doctor` checks them all.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)


_SUBCOMMANDS = sweep, follow, prune, migrate, status, orphans, explain, doctor, listen, dispatch, rekey, serve, demo
for _subcommand in _SUBCOMMANDS:
    _subcommand.short_help = " ".join((_subcommand.help or "").partition("\n\n")[0].split())  # Click would cut it off
    command.add_command(_subcommand)


def main(arguments: Sequence[str] | None = None, name: str = "mailglass-reconcile") -> None:
    """Run the command line; a foreseeable fault is one line on standard error.

    Args:
        arguments: What comes after the command's name; None is this process's own.
        name: How the command was called.

    Raises:
        SystemExit: Always, with the exit code.
    """
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except MailglassReconcileError as error:
        click.echo(f"{name}: {error}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
