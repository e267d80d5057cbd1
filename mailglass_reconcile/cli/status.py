"""The subcommand `status`: how linking is going, for a person, for a machine, and for an alert."""

from __future__ import annotations

import sys

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.output import Duration, console, format_in_row, print_json, table, warn_of_unknown_tenant
from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.ops.checks import ERROR, WARNING
from mailglass_reconcile.ops.runs import ListedRun
from mailglass_reconcile.ops.status import Status, load_findings, load_status, sentences
from mailglass_reconcile.rules.humanize import escape_unprintable, format_duration, pluralize
from mailglass_reconcile.rules.thresholds import LATE_SECONDS
from mailglass_reconcile.rules.times import format_time

EXAMPLES = """\b
Examples:
  watch mailglass-reconcile status
  mailglass-reconcile status --check --max-lag 30m || echo "look at doctor"
  mailglass-reconcile status --json | jq .problems
"""


@click.command(epilog=EXAMPLES)
@click.option("--tenant", metavar="ID", help="Show this tenant's open events only.")
@click.option("--check", is_flag=True, help="Print one line; exit with 0 if healthy, with 1 if not.")
@click.option(
    "--max-lag",
    type=Duration(),
    default=f"{LATE_SECONDS // 60}m",
    show_default=True,
    metavar="TIME",
    help="Report unhealthy if a linkable event has waited longer than this, or no full sweep has succeeded in two"
    " thirds of it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(tenant: str | None, check: bool, max_lag: float, as_json: bool) -> None:
    """Show how linking is going: open events by state, the last runs, and what is wrong.

    Open events are shown as the last full sweep left them, with the number of those that have arrived since.
    `sweep --dry-run` counts them now.
    """
    if check and as_json:
        raise click.UsageError("--check and --json exclude each other")
    if check:
        sys.exit(_print_health(max_lag))
    loaded = load_status(runtime.database(), tenant_id=tenant, max_lag_seconds=max_lag)
    if tenant is not None and not loaded.open:
        warn_of_unknown_tenant(runtime.database(), tenant)
    if as_json:
        print_json(loaded)
    else:
        console().print(_render(loaded))


def _print_health(max_lag: float) -> int:
    try:
        findings = load_findings(runtime.database(), max_lag)
        problems, warnings = sentences(findings, ERROR), sentences(findings, WARNING)
    except MailglassReconcileError as error:
        problems, warnings = [str(error)], []
    line = "unhealthy" if problems else _healthy(warnings)
    click.echo(escape_unprintable(": ".join(filter(None, (line, "; ".join(problems or warnings))))))
    return 1 if problems else 0


def _healthy(warnings: list[str]) -> str:
    return "healthy, with a warning" if warnings else "healthy"


def _render(loaded: Status) -> Group:
    """Return the lines and tables of a status; problems and warnings are of all tenants."""
    lines = [f"{pluralize(loaded.eligible, 'open event')} as of {format_time(loaded.as_of)}"]
    if loaded.newer:
        at_least = "at least " if loaded.at_least else ""
        lines.append(f"{at_least}{pluralize(loaded.newer, 'more has', 'more have')} arrived since")
    if loaded.lag_seconds:
        lines.append(f"the oldest that could be linked has been open for {format_duration(loaded.lag_seconds)}")
    if loaded.totals and loaded.totals["expired"]:
        lines.append(f"{pluralize(loaded.totals['expired'], 'event has', 'events have')} expired without a link")
    if loaded.jobs_waiting:
        lines.append(f"{pluralize(loaded.jobs_waiting, 'job waits', 'jobs wait')} for handlers")
    for kind, at in (loaded.last_success or {}).items():
        lines.append(f"last successful {kind} run: {format_time(at)}")
    if loaded.tenant_id is not None:
        lines.append("of all tenants:")
    lines += [f"warning: {warning}" for warning in loaded.warnings]
    lines += [f"problem: {problem}" for problem in loaded.problems] or [_healthy(loaded.warnings)]
    return Group(*(Text(escape_unprintable(line)) for line in lines), *_make_tables(loaded))


def _make_tables(loaded: Status) -> list[Table]:
    groups = table(
        ("state", "tenant", "provider", "events"),
        [
            (group["state"], group["tenant_id"] or "(small tenants)", group["provider"] or "-", f"{group['orphans']:,}")
            for group in loaded.groups
        ],
    )
    runs = table(("run ended", "kind", "by", "status", "linked", "of", "ms"), map(_format_run, loaded.last_runs or ()))
    return [rows for rows in (groups, runs) if rows.row_count]


def _format_run(run: ListedRun) -> tuple[str, ...]:
    kind = run["kind"] if run["tenant_id"] is None else f"{run['kind']}, {run['tenant_id']}"
    columns = (format_in_row(run["finished_at"]), kind, run["origin"], run["error"] or run["status"])
    return (*columns, f"{run['linked']:,}", f"{run['scanned']:,}", f"{run['duration_ms']:,}")
