"""The subcommand `migrate`: create, update or remove the database's schema."""

from __future__ import annotations

import sys

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.output import confirm, require_terminal

EXAMPLES = """\b
Examples:
  mailglass-reconcile migrate --plan > plan.sql
  mailglass-reconcile migrate --check || echo "run migrate first"
  mailglass-reconcile migrate --grants > grants.sql
  mailglass-reconcile migrate --remove --tables
"""


@click.command(epilog=EXAMPLES)
@click.option("--plan", is_flag=True, help="Print the steps as SQL for psql, and change nothing.")
@click.option("--check", is_flag=True, help="Exit with 0 if the schema is up to date, with 1 otherwise.")
@click.option("--grants", is_flag=True, help="Print the GRANT statements of each role as SQL. Needs no database.")
@click.option(
    "--remove", is_flag=True, help="Remove this package's tables, indexes and triggers. Deliveries and events stay."
)
@click.option("--tables", is_flag=True, help="Drop deliveries and events too, if `migrate` made them (with --remove).")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation (with --remove).")
def migrate(plan: bool, check: bool, grants: bool, remove: bool, tables: bool, yes: bool) -> None:
    """Create or update the tables. Your application may keep writing."""
    if plan + check + grants + remove > 1:
        raise click.UsageError("--plan, --check, --grants and --remove exclude each other")
    if (yes or tables) and not remove:
        raise click.UsageError(f"--{'tables' if tables else 'yes'} can only be used with --remove")
    from mailglass_reconcile.store.migration import runner  # noqa: PLC0415 - takes a fifth of a command's start

    if grants:
        from mailglass_reconcile.store.migration import privileges  # noqa: PLC0415 - as above

        click.echo(privileges.load_script(runtime.get_settings().database_schema), nl=False)
        return
    engine, settings = runtime.get_engine(), runtime.get_settings()
    if check:
        missing = runner.find_missing_objects(engine, settings)
        for line in missing or [f"at revision {runner.load_revision(engine, settings)}"]:
            click.echo(line)
        sys.exit(1 if missing else 0)
    if remove:
        for line in runner.describe_removal(engine, settings, tables=tables):
            click.echo(line)
        if not yes:
            require_terminal("nothing was removed; pass --yes to remove it")
            question = (
                "drop deliveries and events with every row?"
                if tables
                else "remove this package's tables, indexes and triggers?"
            )
            confirm(question)
        runner.remove(engine, settings, click.echo, tables=tables)
    else:
        runner.migrate(engine, settings, click.echo, plan=plan)
