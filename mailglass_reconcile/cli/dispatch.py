"""The subcommand `dispatch`, which runs handlers and manages their jobs; `sweep` runs them after it has linked."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.output import (
    Duration,
    confirm,
    ignore_broken_pipe,
    print_json,
    print_result,
    require_terminal,
    wrap_text,
)
from mailglass_reconcile.cli.startup import require_schema
from mailglass_reconcile.errors import MailglassReconcileError, with_local_names
from mailglass_reconcile.handlers import administration, dispatcher
from mailglass_reconcile.ops import handler_jobs
from mailglass_reconcile.ops.handler_jobs import HandlerJob, State
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.humanize import escape_unprintable, format_duration, format_duration_ms, pluralize
from mailglass_reconcile.rules.times import format_time

logger = logging.getLogger(__name__)

ALL = "all"

_TOTALS: dict[State, tuple[str, str]] = {
    "waiting": ("job of a handler waits", "jobs of handlers wait"),
    "dead": ("job of a handler is dead", "jobs of handlers are dead"),
}
_ATTEMPTS: dict[State, str] = {"waiting": "next attempt", "dead": "died"}

EXAMPLES = """\b
Examples:
  mailglass-reconcile dispatch --dead --handler suppress
  mailglass-reconcile dispatch --retry 0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10
  mailglass-reconcile dispatch --replay bounced --since 7d
"""


def _event_id(context: click.Context, option: click.Parameter, value: str | None) -> UUID | str | None:
    return value if value in (None, ALL) else click.UUID.convert(value, option, context)


@click.command(epilog=EXAMPLES)
@click.option(
    "--waiting", is_flag=True, help="List the jobs that wait, one for each handler and event, by handler and error."
)
@click.option("--dead", is_flag=True, help="List the jobs that have failed for the last time.")
@click.option(
    "--retry",
    callback=_event_id,
    is_flag=False,
    flag_value=ALL,
    metavar="[EVENT_ID]",
    help="Try all dead and failing jobs, or those of one event, again in the next dispatch.",
)
@click.option(
    "--replay",
    metavar="TYPE",
    help="Queue past events of this type (see --since) for handlers that have not processed them.",
)
@click.option(
    "--since", type=Duration(), metavar="AGE", help="Queue events up to this age, such as 12h or 7d (with --replay)."
)
@click.option(
    "--forget",
    is_flag=False,
    flag_value=ALL,
    metavar="[TYPE]",
    help="Unregister the handlers of this type, or the one of --handler, and delete the jobs that wait for them.",
)
@click.option(
    "--handler",
    metavar="NAME",
    help="Select this handler only (with --waiting, --dead, --retry, --replay and --forget).",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation (with --replay and --forget).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def dispatch(
    waiting: bool,
    dead: bool,
    retry: UUID | str | None,
    replay: str | None,
    since: float | None,
    forget: str | None,
    handler: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Run the handlers of the modules in MAILGLASS_IMPORTS on every event that is due.

    Exits with 0 if no handler failed.
    """
    actions = [waiting, dead, retry is not None, replay is not None, forget is not None]
    if sum(actions) > 1:
        raise click.UsageError("--waiting, --dead, --retry, --replay and --forget exclude each other")
    if (replay is None) != (since is None):
        raise click.UsageError("--replay needs --since, such as --since 7d, and --since needs --replay")
    if handler is not None and not any(actions):
        raise click.UsageError("--handler needs --waiting, --dead, --retry, --replay or --forget")
    if forget == ALL and handler is None:
        raise click.UsageError("--forget needs a type, such as --forget bounced, or --handler")
    if waiting:
        _list_jobs("waiting", handler, as_json)
    elif dead:
        _list_jobs("dead", handler, as_json)
    elif retry is not None:
        _retry(retry, handler, as_json)
    elif replay is not None and since is not None:
        _replay(replay, since, handler, yes, as_json)
    elif forget is not None:
        _forget(None if forget == ALL else forget, handler, yes, as_json)
    else:
        require_schema()
        with _interrupt_on_sigterm():
            _dispatch(as_json)


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C: a handler's statement is cancelled, and its job is unlocked."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_handlers(linked: int) -> None:
    """Run this process's handlers if a sweep has *linked* something; if that fails, the next dispatch runs them."""
    if not (linked and registry.types_with_handlers()):
        return
    try:
        dispatcher.dispatch_within(None, "command")
    except MailglassReconcileError as error:
        logger.warning("handlers did not run, and will at the next dispatch: %s", error)


def _dispatch(as_json: bool) -> None:
    result = dispatcher.dispatch_within(None, "command")
    if not registry.types_with_handlers():
        click.echo(with_local_names("no handler is registered: their modules must be in MAILGLASS_IMPORTS"), err=True)
    text = f"handled {pluralize(result.handled, 'job')} in {format_duration_ms(result.duration_ms)}"
    text += f"; {result.failed:,} failed" + (f", {result.dead:,} dead" if result.dead else "")
    print_result(result.as_dict(), text, as_json=as_json)
    sys.exit(1 if result.failed or result.dead else 0)


def _list_jobs(state: State, handler: str | None, as_json: bool) -> None:
    """Print the waiting or the dead jobs, after their groups on standard error."""
    job_list = handler_jobs.load_jobs(runtime.database(), state, handler)
    if as_json:
        print_json({state: job_list.jobs, "groups": job_list.groups, "total": job_list.total})
        return
    click.echo(pluralize(job_list.total, *_TOTALS[state]), err=True)
    for group in job_list.groups:
        attempt = f"{group.error}, {_ATTEMPTS[state]}" if group.error else "not tried yet, due"
        text = f"{group.number:,} {group.type} for {group.handler}: {attempt} {format_time(group.at)}"
        click.echo(wrap_text(text, "    ", "  "), err=True)
    with ignore_broken_pipe():
        for job in job_list.jobs:
            click.echo(_format_job(job))
    if job_list.total > len(job_list.jobs):
        click.echo(f"only the first {len(job_list.jobs):,} are shown", err=True)


def _format_job(job: HandlerJob) -> str:
    """Format a job of a list, with its whole ids on lines of their own."""
    due = f"dead since {format_time(job.at)}" if job.state == "dead" else f"next attempt {format_time(job.at)}"
    facts = [f"{job.type} for {job.handler}", pluralize(job.attempts, "attempt"), *filter(None, [job.error]), due]
    return "\n".join((job.event_id, wrap_text(", ".join(facts), "  "), f"  delivery {job.delivery_id}"))


def _retry(selected: UUID | str, handler: str | None, as_json: bool) -> None:
    event_id = selected if isinstance(selected, UUID) else None
    retried = administration.retry(runtime.database(), event_id, handler)
    print_result({"retried": retried}, f"{pluralize(retried, 'job')} will be tried again", as_json=as_json)
    if event_id and not retried:
        hints = "`mailglass-reconcile dispatch --dead` and `mailglass-reconcile dispatch --waiting`"
        raise click.ClickException(with_local_names(f"no job of event {event_id} is dead or failing: see {hints}"))


def _replay(type_: str, seconds: float, handler: str | None, yes: bool, as_json: bool) -> None:
    database = runtime.database()
    try:
        registrations = administration.load_replayable(database, type_, seconds, handler)
    except ValueError as error:
        raise click.UsageError(f"--since: {error}") from None
    if not yes:
        missed = pluralize(administration.count_missed(database, registrations, seconds), f"{type_} event")
        names = escape_unprintable(", ".join(registration.handler for registration in registrations))
        _confirm(f"queue {missed} of the last {format_duration(seconds)} for {names}?")
    replayed = administration.replay(database, registrations, seconds)
    text = f"queued {pluralize(replayed, 'job')}; the next dispatch runs them"
    print_result({"replayed": replayed}, text, as_json=as_json)


def _forget(type_: str | None, handler: str | None, yes: bool, as_json: bool) -> None:
    database = runtime.database()
    registrations, waiting = administration.load_registrations(database, type_, handler)
    names = escape_unprintable(
        ", ".join(f"{registration.handler} ({registration.type})" for registration in registrations)
        or handler
        or type_
        or ""
    )
    if not yes:
        _confirm(f"forget {names} and delete {pluralize(waiting, 'waiting job')}? This cannot be undone")
    deleted = administration.forget(database, type_, handler)
    forgotten = [{"handler": registration.handler, "type": registration.type} for registration in registrations]
    text = f"forgot {names} and deleted {pluralize(deleted, 'waiting job')}"
    print_result({"forgotten": forgotten, "deleted": deleted}, text, as_json=as_json)


def _confirm(question: str) -> None:
    require_terminal(f"pass --yes to {question.partition('?')[0]}")
    confirm(question)
