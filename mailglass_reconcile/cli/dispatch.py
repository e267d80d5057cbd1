"""The subcommand `dispatch`, which runs handlers, and replays or forgets; `sweep` runs them for what it has linked."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import click

from mailglass_reconcile import runtime
from mailglass_reconcile.cli.starting import look_now
from mailglass_reconcile.cli.texts import Duration, moment, print_json, reader_may_leave, wrapped
from mailglass_reconcile.errors import MailglassReconcileError, hint
from mailglass_reconcile.handlers import dispatcher, handled
from mailglass_reconcile.ops import waiting as waits
from mailglass_reconcile.rules import handlers as registry
from mailglass_reconcile.rules.humanize import age, counted, took

logger = logging.getLogger(__name__)

ALL = "all"

EXAMPLES = """\b
Examples:
  mailglass-reconcile dispatch
  mailglass-reconcile dispatch --waiting
  mailglass-reconcile dispatch --dead
  mailglass-reconcile dispatch --retry 0197a0c4-5a1e-7c3b-9d53-3f2b8f1c6a10
  mailglass-reconcile dispatch --replay bounced --since 7d
  mailglass-reconcile dispatch --forget bounced
"""


def _event_id(context: click.Context, option: click.Parameter, value: str | None) -> UUID | str | None:
    return value if value in (None, ALL) else click.UUID.convert(value, option, context)


@click.command(epilog=EXAMPLES)
@click.option("--waiting", is_flag=True, help="List the events that wait for handlers, by handler and error.")
@click.option("--dead", "lists", is_flag=True, help="List the events that have failed for the last time.")
@click.option(
    "--retry",
    callback=_event_id,
    is_flag=False,
    flag_value=ALL,
    metavar="[EVENT_ID]",
    help="Try all dead and failing events, or one, again in the next dispatch.",
)
@click.option("--replay", metavar="TYPE", help="Let a new handler run on the events of this type since --since.")
@click.option("--since", type=Duration(), metavar="AGE", help="For --replay: how old the events may be: 12h, 7d.")
@click.option("--forget", metavar="TYPE", help="Its handlers are gone: delete this type's waiting events.")
@click.option("--yes", is_flag=True, help="Do not ask first, for --replay and --forget.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def dispatch(
    waiting: bool,
    lists: bool,
    retry: UUID | str | None,
    replay: str | None,
    since: float | None,
    forget: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Run the handlers of the modules in MAILGLASS_IMPORTS on every event that is due.

    Exits with 0 if no handler failed.
    """
    if sum([waiting, lists, retry is not None, replay is not None, forget is not None]) > 1:
        raise click.UsageError("--waiting, --dead, --retry, --replay and --forget exclude each other")
    if (replay is None) != (since is None):
        raise click.UsageError("--replay needs --since, such as --since 7d, and --since needs --replay")
    if waiting:
        _list_waiting(as_json)
    elif lists:
        _list_dead(as_json)
    elif retry is not None:
        _retry(retry, as_json)
    elif replay is not None and since is not None:
        _replay(replay, since, yes, as_json)
    elif forget is not None:
        _forget(forget, yes, as_json)
    else:
        look_now()
        with _ended_by_sigterm():
            _dispatch(as_json)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: the dispatcher gives back the events that it has claimed and not begun."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_for(linked: int) -> None:
    """Run this process's handlers if a sweep has *linked* something; if that fails, the next dispatch runs them."""
    if not (linked and registry.types()):
        return
    try:
        dispatcher.dispatch_within(None, "command")
    except MailglassReconcileError as error:
        logger.warning("handlers did not run, and will at the next dispatch: %s", error)


def _dispatch(as_json: bool) -> None:
    result = dispatcher.dispatch_within(None, "command")
    if not registry.types():
        click.echo("no handler is registered: name the modules that register them in MAILGLASS_IMPORTS", err=True)
    if as_json:
        print_json(result.as_dict())
    else:
        click.echo(
            f"dispatched {counted(result.dispatched, 'event')} in {took(result.duration_ms)}:"
            f" {counted(result.handled, 'handler')} done, {result.failed:,} failed"
            + (f"; {counted(result.dead, 'event is', 'events are')} dead" if result.dead else "")
        )
    sys.exit(1 if result.failed or result.dead else 0)


def _list_dead(as_json: bool) -> None:
    found = waits.dead_events(runtime.database(), waits.LISTED)
    if as_json:
        print_json({"dead": found})
        return
    if not found:
        click.echo("there are no dead events")
    with reader_may_leave():
        for row in found:
            click.echo(_event(row, f"dead since {moment(row['finished_at'] + 'Z')}"))


def _list_waiting(as_json: bool) -> None:
    found = waits.backlog(runtime.database())
    if as_json:
        groups = [one.as_dict() for one in found.groups]
        print_json({"waiting": found.events, "groups": groups, "total": found.total})
        return
    click.echo(counted(found.total, "event waits for its handlers", "events wait for their handlers"), err=True)
    for group in found.groups:
        left = f"{group.type}: {', '.join(group.handlers) or 'handlers not loaded here'}"
        why = f"{group.error}, next attempt" if group.error else "not tried yet, due"
        click.echo(wrapped(f"{group.number:,} {left}; {why} {moment(group.next_at)}", "    ", "  "), err=True)
    with reader_may_leave():
        for row in found.events:
            click.echo(_event(row, f"next attempt {moment(row['next_at'])}"))
    if found.total > len(found.events):
        click.echo(f"only the first {len(found.events):,} are shown", err=True)


def _event(row: dict[str, Any], when: str) -> str:
    """Return an event of a list, with its whole ids on lines of their own."""
    facts = [row["type"], counted(row["attempts"], "attempt"), *filter(None, [row["error"]]), when]
    done = f"; done: {', '.join(row['done'])}" if row["done"] else ""
    return "\n".join((row["event_id"], wrapped(f"{', '.join(facts)}{done}", "  "), f"  delivery {row['delivery_id']}"))


def _retry(wanted: UUID | str, as_json: bool) -> None:
    retried = dispatcher.retry(runtime.database(), wanted if isinstance(wanted, UUID) else None)
    if as_json:
        print_json({"retried": retried})
    else:
        click.echo(f"{counted(retried, 'event')} will be tried again")
    if isinstance(wanted, UUID) and not retried:
        hints = "`mailglass-reconcile dispatch --dead` and `mailglass-reconcile dispatch --waiting`"
        click.echo(hint(f"event {wanted} is neither dead nor failing: see {hints}"), err=True)
        sys.exit(1)


def _replay(type_: str, seconds: float, yes: bool, as_json: bool) -> None:
    runtime.load_imports()
    try:
        handled.require_replayable(runtime.get_settings(), type_, seconds)
    except ValueError as error:
        raise click.UsageError(f"--since: {error}") from None
    database = runtime.database()
    missed = counted(handled.missed(database, type_, seconds), f"{type_} event")
    _confirm(f"queue {missed} of the last {age(seconds)} for the handlers that have not had them?", yes)
    replayed = handled.replay(database, type_, seconds)
    text = f"queued {counted(replayed, 'event')}; the next dispatch runs their handlers"
    if as_json:
        print_json({"replayed": replayed})
    else:
        click.echo(text)


def _forget(type_: str, yes: bool, as_json: bool) -> None:
    database = runtime.database()
    try:
        known = handled.known(database, type_)
    except LookupError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    seen = "" if known.seen_seconds is None else f"; a dispatcher had a handler of it {age(known.seen_seconds)} ago"
    waiting = counted(known.waiting, "waiting event")
    _confirm(f"forget {type_} and delete its {waiting}{seen}? This cannot be undone", yes)
    deleted = handled.forget(database, type_)
    text = f"forgot {type_} and deleted {counted(deleted, 'waiting event')}"
    if as_json:
        print_json({"forgotten": type_, "deleted": deleted})
    else:
        click.echo(text)


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"no terminal to confirm on: pass --yes to {question.partition('?')[0]}")
    click.confirm(question, abort=True, err=True)
