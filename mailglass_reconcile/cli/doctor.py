"""The subcommand that checks an installation: `doctor`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import Counter
from typing import TYPE_CHECKING

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING, Finding
from mailglass_reconcile.rules.humanize import escape_unprintable, pluralize

if TYPE_CHECKING:
    from mailglass_reconcile.ops.checks.workers import Cluster

COLOURS = {OK: "green", WARNING: "yellow", ERROR: "red"}

EXAMPLES = """
\b
Examples:
  mailglass-reconcile doctor
  mailglass-reconcile doctor --json | jq '.findings[] | select(.status != "ok")'
  mailglass-reconcile doctor --repair
"""


@click.command(epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the list `findings`.")
@click.option(
    "--repair", is_flag=True, help="Repair the table of open orphans first; reads all orphans up to the maximum age."
)
@click.option("--verbose", "-v", is_flag=True, help="Print what is ok, too.")
def doctor(as_json: bool, repair: bool, verbose: bool) -> None:
    """Check Postgres, Redis, Celery, settings and the newest rows, and print how to fix what is wrong.

    Each finding is a warning or an error, with its cause and a step that fixes it; the gravest is the last, above the
    total. The exit code is 1 if there is an error. Run it with the environment of the worker. If the Celery app is your
    own, name its module in MAILGLASS_IMPORTS.
    """
    findings = checks.diagnose(_cluster if runtime.available() else None, repair=repair)
    wrong = Counter(one.status for one in findings)
    if as_json:
        click.echo(json.dumps({"findings": [one.as_dict() for one in findings]}))
    else:
        for one in reversed(findings):
            if verbose or one.status != OK:
                _print(one)
        well = f", {wrong[OK]} ok" if verbose else f"; {pluralize(wrong[OK], 'check is', 'checks are')} ok (--verbose)"
        click.echo(f"{pluralize(wrong[ERROR], 'error')}, {pluralize(wrong[WARNING], 'warning')}{well}")
    sys.exit(1 if wrong[ERROR] else 0)


def _cluster() -> Cluster:
    """Return Celery as the application's own app has it, or else the bundled one."""
    workers = importlib.import_module("mailglass_reconcile.ops.checks.workers")  # Celery may be missing
    app, setting = workers.own_app(), "broker_url of your Celery app"
    if app is None:
        app = importlib.import_module("mailglass_reconcile.celery").app
        setting = "CELERY_BROKER_URL" if os.environ.get("CELERY_BROKER_URL") else "MAILGLASS_REDIS_URL"
    return workers.Cluster(app, setting)  # type: ignore[no-any-return]


def _print(one: Finding) -> None:
    click.echo(
        f"{click.style(f'{one.status:<7}', fg=COLOURS[one.status])}  {one.check:<16}  {escape_unprintable(one.message)}"
    )
    if one.remedy:
        click.echo(f"{'':27}-> {escape_unprintable(one.remedy)}")
