"""The command `mailglass-reconcile`. Exit codes: 0 ok, 1 partial or failed, 2 usage, 130 interrupted."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from mailglass_reconcile.rules.humanize import did_you_mean, escape_unprintable

INTERRUPTED = 130

_SUBCOMMANDS = {
    "demo": "Run the demo on temporary Postgres and Valkey servers. Needs the extra `demo`.",
    "dispatch": "Run the handlers of the modules in MAILGLASS_IMPORTS on every event that is due.",
    "doctor": "Check Postgres, Redis, Celery, settings and the newest rows, and print how to fix what is wrong.",
    "erase": "Erase a person: remove an address, in any spelling, from deliveries, open events and raw webhooks.",
    "explain": "Show why one event is linked or not, and what must change.",
    "find": "Find the deliveries and open events of an address, a message or an id, each with its next command.",
    "follow": "Link events as soon as their delivery exists, until SIGTERM or Ctrl-C.",
    "link": "Link one event to the delivery that you choose; only their tenant must be the same.",
    "listen": "Print broadcasts as they are published, each event once, until you press Ctrl-C.",
    "migrate": "Create or update the tables. Your application may keep writing.",
    "orphans": "List open events (stored before their delivery), the newest first, with their state at the last sweep.",
    "prune": "Delete what is older than its retention, and repair the table of open events.",
    "receive": "Receive providers' webhooks and record them. Needs the extra `webhooks`.",
    "rekey": "Read the message ids of all open events again, after you have corrected a key rule.",
    "serve": "Serve the read-only dashboard. Needs the extra `web`.",
    "status": "Show how linking is going: open events by state, the last runs, and what is wrong.",
    "sweep": "Link every open event whose delivery exists.",
    "trigger": "Send a sample webhook, signed as the provider signs, to try an installation without its account.",
}
"""The first sentence of each subcommand's help, so that `--help` imports no subcommand's module."""

_GROUPS = {
    "Every day": ("status", "doctor", "sweep", "find", "explain", "orphans", "listen"),
    "Repair": ("link", "rekey", "erase"),
    "Set up and run": ("migrate", "trigger", "demo", "receive", "dispatch", "follow", "prune", "serve"),
}


class Subcommands(click.Group):
    """A group that imports a subcommand's module when it runs: their libraries take half a second to import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_SUBCOMMANDS)

    def get_command(self, ctx: click.Context | None, cmd_name: str) -> click.Command | None:
        """Import and return a subcommand, or None if there is none of this name."""
        if cmd_name not in _SUBCOMMANDS:
            return None
        subcommand: click.Command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return subcommand

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest a subcommand for a mistyped name."""
        name = args[0]
        if name in _SUBCOMMANDS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        return ctx.fail(f"no such command {name!r}{did_you_mean(name, _SUBCOMMANDS)}")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, _SUBCOMMANDS[name]) for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from mailglass_reconcile.settings import ENV_PREFIX, Settings  # noqa: PLC0415 - see the class

        names = ", ".join(f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields)
        formatter.write_paragraph()
        formatter.write_text(f"All settings: {names}.")


@click.group(cls=Subcommands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mailglass-reconcile")
def command() -> None:
    """Link e-mail webhooks that arrive before the send has committed, exactly once.

    Settings come from environment variables. Only MAILGLASS_DATABASE_URL must be set; everything else has a default.
    `doctor` checks them all.
    """
    import logging  # noqa: PLC0415 - see Subcommands

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)


def main(arguments: Sequence[str] | None = None, name: str = "mailglass-reconcile") -> None:
    """Run the command line; print an error of ours as one line on standard error, and exit."""
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        for line in text.getvalue().replace("Error: ", f"{name}: ", 1).splitlines():
            click.echo(escape_unprintable(line), err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except Exception as error:
        from mailglass_reconcile.errors import MailglassReconcileError  # noqa: PLC0415 - see Subcommands

        if not isinstance(error, MailglassReconcileError):
            raise
        click.echo(f"{name}: {escape_unprintable(str(error))}", err=True)
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
