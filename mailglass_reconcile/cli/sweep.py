"""The subcommand `sweep`: all that is eligible, or selected events, and what it prints."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mailglass_reconcile import runtime
from mailglass_reconcile.cli import INTERRUPTED, dispatch
from mailglass_reconcile.cli.completion import complete_provider
from mailglass_reconcile.cli.output import (
    Duration,
    confirm,
    ignore_broken_pipe,
    require_terminal,
    warn_of_unknown_tenant,
)
from mailglass_reconcile.handlers import registration
from mailglass_reconcile.linking.link import Pairs
from mailglass_reconcile.ops import orphans, targeted_sweep
from mailglass_reconcile.ops.targeted_sweep import Target
from mailglass_reconcile.rules.humanize import format_duration_ms, pluralize, sanitize
from mailglass_reconcile.rules.states import MEANINGS, OUTCOMES, SKIPPED
from mailglass_reconcile.sweep import reconciler
from mailglass_reconcile.sweep.interruption import stop_on_signal
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.sweep.result import SweepResult, format_remaining

Shower = Callable[[Pairs], None]

WHY_OPEN = tuple(state for state in (*OUTCOMES, *SKIPPED) if state not in ("linked", "skipped", "skipped_limit"))

EXAMPLES = """\b
Examples:
  mailglass-reconcile sweep --dry-run --verbose
  mailglass-reconcile sweep --tenant acme --limit 10
  mailglass-reconcile sweep --provider sendgrid --since 2h --yes
  mailglass-reconcile sweep --json | jq .remaining
"""


@click.command(epilog=EXAMPLES)
@click.option("--tenant", metavar="ID", help="Sweep this tenant's events only.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after N links.")
@click.option("--event", type=click.UUID, metavar="EVENT_ID", help="Link this event only, of any age.")
@click.option("--delivery", type=click.UUID, metavar="ID", help="Link events of this delivery only, of any age.")
@click.option(
    "--provider",
    metavar="NAME",
    shell_complete=complete_provider,
    help="Link events of this provider only, in any spelling.",
)
@click.option("--since", type=Duration(), metavar="AGE", help="Link only events of at most this age: 90s, 5m, 2h, 6d.")
@click.option("--until", type=Duration(), metavar="AGE", help="Link only events of at least this age.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--dry-run", is_flag=True, help="Show what would be linked, and why the rest would not, without writing.")
@click.option("--verbose", is_flag=True, help="List each event and the delivery that it would get (with --dry-run).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sweep(
    tenant: str | None,
    limit: int | None,
    event: UUID | None,
    delivery: UUID | None,
    provider: str | None,
    since: float | None,
    until: float | None,
    yes: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Link every open event whose delivery exists.

    With any of --event, --delivery, --provider, --since and --until, it first counts what it would link, and asks for
    confirmation.
    """
    if verbose and not dry_run:
        raise click.UsageError("--verbose needs --dry-run")
    if verbose and as_json:
        raise click.UsageError("--verbose and --json exclude each other")
    if event is not None and any(option is not None for option in (tenant, limit, delivery, provider, since, until)):
        raise click.UsageError("--event excludes --tenant, --limit, --delivery, --provider, --since and --until")
    if delivery is not None and tenant is not None:
        raise click.UsageError("--delivery and --tenant exclude each other")
    if not dry_run:
        registration.register_before_sweep(runtime.database())
    show = _show if verbose else None
    if any(option is not None for option in (event, delivery, provider, since, until)):
        target = Target(tenant, provider, since, until, event, delivery)
        result = _sweep_target(target, limit, show, dry_run=dry_run, yes=yes, with_bar=not as_json)
        covered_until = None
    else:
        prepared = reconciler.prepare(tenant, limit, dry_run=dry_run, origin="command")
        result = _run(prepared, show, with_bar=not as_json)
        covered_until = prepared.window.until if prepared.window else None
    click.echo(json.dumps(result.as_dict()) if as_json else _in_words(result, covered_until))
    if tenant is not None and not result.scanned:
        warn_of_unknown_tenant(runtime.database(), tenant)
    if not result.dry_run:
        dispatch.run_handlers(result.linked)
    sys.exit(0 if result.status == "ok" else 1)


def _run(sweep: Sweep, show: Shower | None, *, with_bar: bool) -> SweepResult:
    has_bar = with_bar and show is None and Console(stderr=True).is_terminal
    with stop_on_signal(signal.SIGINT, sweep) as interruption, _progress(visible=has_bar) as tell:
        for pairs in sweep.batches():
            tell(sweep)
            if show is not None:
                show(pairs)
    if interruption.received:
        if sys.stderr.isatty() and not has_bar:
            click.echo(err=True)  # after the ^C that the terminal shows; with a bar, it goes with the bar
        links = pluralize(sweep.result.linked, "link is committed and stays", "links are committed and stay")
        click.echo(f"interrupted: {links}; the next sweep links the rest", err=True)
        sys.exit(INTERRUPTED)
    return sweep.result


def _sweep_target(
    target: Target, limit: int | None, show: Shower | None, *, dry_run: bool, yes: bool, with_bar: bool
) -> SweepResult:
    """Sweep a target; without *yes*, a dry run counts first, and its number of links is the limit of the sweep."""
    is_asking = not (yes or dry_run)
    if is_asking:
        require_terminal("pass --yes, or --dry-run to see what would be linked")
    sweep = targeted_sweep.prepare(target, limit, dry_run=dry_run or is_asking)
    result = _run(sweep, show, with_bar=with_bar)
    targeted_sweep.require_linked(sweep, target)
    if is_asking and result.linked:
        confirm(f"link {pluralize(result.linked, 'event')}?")
        result = _run(targeted_sweep.prepare(target, result.linked), show, with_bar=with_bar)
    return result


def _show(pairs: Pairs) -> None:
    """Print each event with the delivery to which it would be linked."""
    with ignore_broken_pipe():
        for event_id, delivery_id in pairs:
            click.echo(f"{event_id} -> {delivery_id}")


def _in_words(result: SweepResult, covered_until: str | None) -> str:
    """Return the result in words; a targeted sweep has no window with an upper end."""
    if result.scanned or result.status != "ok":
        return summary(result)
    if covered_until is None:
        return "nothing to link: no open event is selected"
    newer = orphans.load_newer(runtime.database(), covered_until, result.tenant_id)
    return _nothing_to_do(newer.orphans, runtime.get_settings().grace_seconds, result.tenant_id)


def summary(result: SweepResult) -> str:
    """Return the summary of a sweep in lines: its links, and why other events stay open."""
    verb = "would link" if result.dry_run else "linked"
    of_tenant = "" if result.tenant_id is None else f" of tenant '{sanitize(result.tenant_id)}'"
    scanned = pluralize(result.scanned, "open event")
    lines = [f"{verb} {result.linked:,} of {scanned}{of_tenant} in {format_duration_ms(result.duration_ms)}"]
    if result.linked_unchecked:
        lines.append(
            f"{result.linked_unchecked:>10,} of these by the message id alone: their recipient could not be read"
        )
    lines += [
        f"{getattr(result, state):>10,} {state.replace('_', ' ')}: {MEANINGS[state].sentence}"
        for state in WHY_OPEN
        if getattr(result, state)
    ]
    if result.skipped_limit:
        lines.append(f"{result.skipped_limit:,} more not checked or not linked: sweep again, or without --limit")
    if result.publish_failed:
        messages = pluralize(result.published + result.publish_failed, "broadcast")
        lines.append(f"{result.publish_failed:,} of {messages} not sent: check MAILGLASS_REDIS_URL")
    if result.status != "ok":
        lines.append(f"this sweep is {result.status}: {format_remaining(result.remaining)}")
    return "\n".join(lines)


def _nothing_to_do(waiting: int, grace_seconds: int, tenant_id: str | None) -> str:
    of_tenant = "" if tenant_id is None else f" of tenant '{sanitize(tenant_id)}'"
    if not waiting:
        return f"nothing to do: there are no open events{of_tenant}"
    waiting_events = pluralize(waiting, f"event{of_tenant} is in its", f"events{of_tenant} are in their")
    return f"nothing to do yet: {waiting_events} {grace_seconds:,} s grace period"


@contextmanager
def _progress(*, visible: bool) -> Iterator[Callable[[Sweep], None]]:
    """Show how many events are processed on standard error, for a person; log lines come above the bar."""
    if not visible:
        yield lambda sweep: None
        return
    columns = TextColumn("sweeping"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar, _logged_above():
        task = bar.add_task("sweep", total=None)
        yield lambda sweep: bar.update(task, total=sweep.counters.selected, completed=sweep.counters.processed)


@contextmanager
def _logged_above() -> Iterator[None]:
    """Write log lines above the progress bar, which replaces standard error while it is shown."""
    streams = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    before = [handler.setStream(sys.stderr) for handler in streams]
    try:
        yield
    finally:
        for handler, stream in zip(streams, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
