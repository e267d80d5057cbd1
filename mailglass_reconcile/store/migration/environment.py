"""What Alembic's env.py runs, for `migrate` and for Alembic's own command: first revisions, then what is repeatable."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import click

from mailglass_reconcile.errors import DatabaseRefusedError, MailglassReconcileError, database_errors
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import installed
from mailglass_reconcile.store.database import Transaction
from mailglass_reconcile.store.engines import create_engine
from mailglass_reconcile.store.migration import objects, operations, preflight, removal
from mailglass_reconcile.store.migration.comparison import Comparison, compare
from mailglass_reconcile.store.migration.quiet_alembic import CommandError
from mailglass_reconcile.store.migration.session import PLAN_HEADER, Session, open_session
from mailglass_reconcile.store.schema import revision
from mailglass_reconcile.store.tables import retention

REQUEST = "mailglass_reconcile.request"
"""The attribute of Alembic's configuration that has the request of `migrate`."""

_TARGETS = {"upgrade": ("head", "heads"), "downgrade": ("base",)}
"""The only arguments of Alembic's command."""

_NONE_FOUND = (
    "creating the tables of deliveries, events and webhooks, because there are none"
    " (if you also run Mailglass, the Elixir library, its own migrations must make them)"
)


class Request(NamedTuple):
    """The arguments of a migration.

    Attributes:
        session: The session.
        tell: Gets a line for each step.
        command: Alembic's command.
    """

    session: Session
    tell: Callable[[str], None]
    command: str = "upgrade"


def run(context: Any) -> None:
    """Run the command for which Alembic has loaded env.py; *context* is `alembic.context`."""
    with _request(context.config) as request:
        if request.command == "upgrade":
            _upgrade(context, request)
        elif request.command == "downgrade":
            removal.remove(request.session, request.tell, plan=context.is_offline_mode())
        else:
            with request.session.connected.reading_catalog() as tx:
                _refuse_unknown(tx.revision())
                preflight.refuse_foreign(tx, compare(tx))
            request.session.require_lock()
            _run_revisions(context, request)


@contextmanager
def _request(config: Any) -> Iterator[Request]:
    """Yield the request of `runner`, or one that Alembic's own command makes, from the environment."""
    if REQUEST in config.attributes:
        yield config.attributes[REQUEST]
        return
    name = config.cmd_opts.cmd[0].__name__
    _require_target(name, config.cmd_opts)
    settings, warn = Settings(), partial(click.echo, err=True)
    try:
        with database_errors(), open_session(create_engine(settings), settings, warn) as session:
            yield Request(session, click.echo, name)
    except MailglassReconcileError as error:
        raise CommandError(str(error)) from None


def _require_target(command: str, options: Any) -> None:
    """Raise an error unless Alembic's command is to run all revisions or to remove everything."""
    if command in _TARGETS and options.revision.rpartition(":")[2] not in _TARGETS[command]:
        raise CommandError(
            "nothing was changed: only `alembic upgrade head` and `alembic downgrade base`, which removes our objects,"
            f" are possible. {preflight.NO_WAY_BACK}"
        )


def _upgrade(context: Any, request: Request) -> None:
    session, tell, plan = request.session, request.tell, context.is_offline_mode()
    say = (lambda line: tell(f"-- {line}")) if plan else tell
    with session.connected.reading_catalog() as tx:
        say(preflight.describe_location(tx))
        version = tx.revision()
        comparison = compare(tx)
        if revision.is_newer(version) and comparison.tables:
            say(f"warning: nothing was changed, because {revision.find_mismatch(version)}")
            return
        if comparison.strangers:
            preflight.refuse_foreign(tx, comparison)
        has_ledger = _require_usable(tx, version, comparison)
        least_days = retention.format_least_days(tx)
        is_done = version == revision.VERSION and not comparison.curable and not least_days
        if not is_done:
            preflight.refuse_foreign(tx, comparison)
        preflight.refuse_incurable(tx, comparison)
        if not plan:
            preflight.refuse_partitioned(comparison)
        if not (plan or is_done):
            preflight.require_create(tx)
        preflight.refuse_without_revision(comparison)
    if is_done:
        owned = f", owned by {comparison.owner}" if comparison.owner else ""
        say(f"nothing to do: the database is at revision {version}{owned}")
        return
    if not plan:
        session.require_lock()
    if not has_ledger:
        say(_NONE_FOUND)
    if plan:
        tell(PLAN_HEADER)
    context.config.attributes[operations.NEW_LEDGER] = not has_ledger
    if version != revision.VERSION:
        _run_revisions(context, request, version)
    if plan:
        for text in objects.format_plan(session, comparison.curable, least_days):
            tell(text)
        return
    with session.connected.reading_catalog() as tx:
        comparison = compare(tx, made_here=not has_ledger)
    objects.run(session, comparison.curable, least_days, tell)
    tell(f"done: revision {revision.VERSION}")


def _require_usable(tx: Transaction, version: str | None, comparison: Comparison) -> bool:
    """Raise an error if the schema cannot be migrated from *version*; return True if Mailglass's tables exist."""
    has_ledger = preflight.require_usable_schema(tx)
    if version not in (None, *revision.REVISIONS):  # it may be planted
        preflight.refuse_foreign(tx, comparison)
    _refuse_unknown(version)
    if version and not has_ledger:
        raise DatabaseRefusedError(f"nothing was changed: {installed.WITHOUT_LEDGER}")
    return has_ledger


def _run_revisions(context: Any, request: Request, version: str | None = None) -> None:
    """Run Alembic's revisions, each in one transaction with its version; a plan begins after *version*."""
    output = io.StringIO()

    def run_all() -> None:
        context.configure(
            connection=request.session.connection,
            version_table=revision.VERSION_TABLE,
            version_table_schema=request.session.settings.database_schema,
            transaction_per_migration=True,
            on_version_apply=tell_revision,
            **({"starting_rev": version, "output_buffer": output} if context.is_offline_mode() else {}),
        )
        with context.begin_transaction():
            context.run_migrations()

    def tell_revision(*, step: Any, **_: Any) -> None:
        if not context.is_offline_mode():
            request.tell(f"revision {step.up_revision_id}: {step.up_revision.doc}")

    request.session.retry("run the next revision", run_all)
    request.session.connection.commit()
    if text := output.getvalue().strip():
        request.tell(text)


def _refuse_unknown(version: str | None) -> None:
    """Raise an error if the database is at a revision that this version does not have."""
    if version and version not in revision.REVISIONS:
        raise DatabaseRefusedError(f"{revision.find_mismatch(version)}; nothing was changed")
