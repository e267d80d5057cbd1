"""The subcommand that checks an installation: `doctor`."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from typing import TYPE_CHECKING

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.output import print_json, wrap_text, wrap_with_commands
from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING, Finding
from mailglass_reconcile.rules.humanize import pluralize

if TYPE_CHECKING:
    from mailglass_reconcile.ops.checks.workers import Cluster

INDENT = " " * 27
COLOURS = {OK: "green", WARNING: "yellow", ERROR: "red"}

EXAMPLES = """
\b
Examples:
  mailglass-reconcile doctor --json | jq '.findings[] | select(.status != "ok")'
"""


@click.command(epilog=EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the list `findings`.")
@click.option(
    "--repair",
    is_flag=True,
    help="First repair the table of open events from the ledger, which may take minutes.",
)
@click.option("--verbose", "-v", is_flag=True, help="Print the checks that are ok, too.")
def doctor(as_json: bool, repair: bool, verbose: bool) -> None:
    """Check Postgres, Redis, Celery, settings and the newest rows, and print how to fix what is wrong.

    Read the last finding first: it is the worst. Exits with 1 if there is an error. Run it with the environment of the
    worker, and name the module of your own Celery app in MAILGLASS_IMPORTS.
    """
    findings = checks.diagnose(_cluster if runtime.available() else None, repair=repair)
    counts = Counter(finding.status for finding in findings)
    if as_json:
        print_json({"findings": [finding.as_dict() for finding in findings]})
    else:
        for finding in reversed(findings):
            if verbose or finding.status != OK:
                _print(finding)
        well = (
            f", {counts[OK]} ok" if verbose else f"; {pluralize(counts[OK], 'check is', 'checks are')} ok (--verbose)"
        )
        click.echo(f"{pluralize(counts[ERROR], 'error')}, {pluralize(counts[WARNING], 'warning')}{well}")
    sys.exit(1 if counts[ERROR] else 0)


def _cluster() -> Cluster:
    """Return the cluster of the application's own Celery app, or of the bundled one."""
    workers = importlib.import_module("mailglass_reconcile.ops.checks.workers")  # Celery may be missing
    app = workers.own_app() or importlib.import_module("mailglass_reconcile.celery").app
    return workers.Cluster(app)  # type: ignore[no-any-return]


def _print(finding: Finding) -> None:
    level = f"{finding.status:<7}"
    message = wrap_text(finding.message, INDENT, f"{level}  {finding.check:<16}  ")
    click.echo(message.replace(level, click.style(level, fg=COLOURS[finding.status]), 1))
    if finding.remedy:
        click.echo(wrap_with_commands(finding.remedy, f"{INDENT}   ", f"{INDENT}-> "))
