"""One list of checks: the doctor runs all; `status --check`, dashboard, `/metrics` and Django the fast ones.

Each check is a function of a module listed here. Each cause is reported once, the most severe first. The checks write
nothing except, in Redis, a key that expires after a second; only a repair writes to the database. Their cost does not
grow with the tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import sqlalchemy as sa

from mailglass_reconcile import runtime
from mailglass_reconcile.errors import ConfigurationError, MailglassReconcileError, database_errors
from mailglass_reconcile.ops.checks import (
    backlog,
    configuration,
    handlers,
    ledger,
    mailglass,
    recording,
    schema,
    server,
    sweeps,
)
from mailglass_reconcile.ops.checks.check import (
    ERROR,
    NEEDED_BY_ALL,
    OK,
    WARNING,
    Check,
    CheckContext,
    Finding,
    Needs,
    error,
    merge,
    ok,
    warning,
)
from mailglass_reconcile.ops.runs import RunHistory
from mailglass_reconcile.rules import connection_errors
from mailglass_reconcile.rules.humanize import sanitize
from mailglass_reconcile.store.database import OpenConnection
from mailglass_reconcile.store.engines import server_of

if TYPE_CHECKING:
    from mailglass_reconcile.ops.checks.workers import Cluster

__all__ = ["ERROR", "OK", "WARNING", "CheckContext", "Finding", "diagnose", "run_fast"]

STATEMENT_TIMEOUT_MS = 2_000


def _collect_checks(*modules: ModuleType) -> tuple[Check, ...]:
    return tuple(value for module in modules for value in vars(module).values() if isinstance(value, Check))


CHECKS = _collect_checks(configuration, server, schema, sweeps, backlog, handlers, recording, ledger, mailglass)
"""All checks but those of `redis_server` and `workers`, whose imports are slow; causes before effects."""


def _select_checks(needs: Needs, *, only_fast: bool = False) -> Iterator[Check]:
    return (check for check in CHECKS if check.needs == needs and (check.is_fast or not only_fast))


def run_fast(context: CheckContext) -> list[Finding]:
    """Return the warnings and errors of the fast checks, the most severe first."""
    findings: list[Finding] = []
    for check in _select_checks("database", only_fast=True):
        findings += check.findings(context)
        if _hinders_others(check, findings):
            break
    return [finding for finding in merge(findings) if finding.status != OK]


def _hinders_others(check: Check, findings: Iterable[Finding]) -> bool:
    """Return True if, because of an error among the check's *findings*, the checks after it cannot run."""
    return check.name in NEEDED_BY_ALL and _has_error(findings, check.name)


def _has_error(findings: Iterable[Finding], name: str) -> bool:
    return any(finding.check == name and finding.status == ERROR for finding in findings)


def diagnose(celery: Callable[[], Cluster] | None, *, repair: bool = False) -> list[Finding]:
    """Return the findings of all checks, the most severe first.

    Args:
        celery: Makes the Celery app and its broker, after the modules of MAILGLASS_IMPORTS; None if Celery is missing.
        repair: Make the open orphans equal to the ledger first, which reads all of it and may take minutes.
    """
    findings: list[Finding] = []
    for check in _select_checks("nothing"):
        findings += check.attempt()
        if _has_error(findings, "settings"):
            return findings
    uses_celery, expects_redis = celery is not None, runtime.is_redis_configured() or _has_broker()
    database_findings: list[Finding] = []
    connected = _connect(findings)
    history = None
    if connected is not None:
        with connected.connection:
            repair_findings = _repair(connected) if repair else []
            database_findings += [*_check_database(connected), *repair_findings]
            history = _load_history(connected)
            if uses_celery and history:
                uses_celery = not sweeps.runs_without_celery(history, is_scheduled=_is_scheduled())
                expects_redis = expects_redis or (uses_celery and sweeps.ran_with_celery(history))
    redis_findings, is_absent = _check_redis(is_expected=expects_redis)
    findings += redis_findings
    uses_celery, app = uses_celery and not is_absent, history.app if history else None
    if not (uses_celery and celery):
        findings.append(ok(WITHOUT_CELERY)._replace(check="celery"))
    elif beat := _check_celery(celery, findings, app):
        database_findings = [sweeps.name_beat(finding, beat, app) for finding in database_findings]
    return merge([*findings, *database_findings])


WITHOUT_CELERY = "Celery does not run the sweeps here"


def _connect(findings: list[Finding]) -> OpenConnection | None:
    """Connect, and add the finding about it to *findings*."""
    try:
        database = runtime.database()
        server = server_of(database.engine)
        connection = database.engine.connect()
    except ConfigurationError as fault:
        step = "set MAILGLASS_DATABASE_URL to postgresql://user:password@host/name"
        findings.append(error(str(fault), step)._replace(check="database"))
    except sa.exc.DBAPIError as fault:
        reason, remedy = connection_errors.classify(fault, server)
        message = f"cannot connect to {server.kind} at {server.location}: {reason}"
        findings.append(error(message, remedy)._replace(check="database"))
    else:
        findings.append(ok(f"connected to {server.kind} at {server.location}")._replace(check="database"))
        return OpenConnection(connection, database.settings, database.limits)
    return None


def _check_database(connected: OpenConnection) -> Iterator[Finding]:
    """Run each check in its own transaction; stop if its finding means that the next ones cannot run."""
    for check in _select_checks("database"):
        findings = check.in_context(_context(connected)).attempt()
        yield from findings
        if connected.connection.invalidated or _hinders_others(check, findings):
            return


@contextmanager
def _context(connected: OpenConnection) -> Iterator[CheckContext]:
    with database_errors(), connected.reading(STATEMENT_TIMEOUT_MS) as tx:
        yield CheckContext(tx, is_full=True)


def _load_history(connected: OpenConnection) -> RunHistory | None:
    """Return the history of runs, or None if it cannot be read."""
    try:
        with _context(connected) as context:
            return context.history
    except MailglassReconcileError:
        return None


def _has_broker() -> bool:
    """Return True if the application has made a Celery app, or the bundled app has a broker of its own."""
    if configuration.has_broker_url():
        return True
    if "celery" not in sys.modules:
        return False
    from mailglass_reconcile.ops.checks import workers  # noqa: PLC0415 - Celery may be missing

    return workers.own_app() is not None


def _is_scheduled() -> bool:
    """Return True if the application has a Celery app whose schedule has sweeps."""
    if "celery" not in sys.modules:
        return False
    from mailglass_reconcile.ops.checks import workers  # noqa: PLC0415 - Celery may be missing

    return workers.schedules_sweeps()


def _check_redis(*, is_expected: bool) -> tuple[list[Finding], bool]:
    """Return the findings about Redis, and True if there is none and nobody expects one."""
    from mailglass_reconcile.ops.checks import redis_server  # noqa: PLC0415 - loading Redis takes a tenth of a second

    redis, findings = redis_server.Redis(is_expected), list[Finding]()
    for check in _collect_checks(redis_server):
        findings += check.attempt(redis)
        if redis.fault is not None:
            break
    return findings, redis.fault is not None and not is_expected


def _repair(connected: OpenConnection) -> list[Finding]:
    """Repair the open orphans, and return the finding about it."""
    try:
        return [ok(ledger.repair_open_orphans(connected))._replace(check="open_set")]
    except MailglassReconcileError as fault:
        step = "fix the other findings first, then repair"
        return [error(f"could not repair: {fault}", step, NEEDED_BY_ALL)._replace(check="open_set")]


def _check_celery(celery: Callable[[], Cluster], findings: list[Finding], app: str | None) -> str | None:
    """Add the findings about Celery to *findings*; return the command that starts beat if workers wait for tasks.

    If another app than the bundled one, *app*, runs the tasks and is not loaded here, there is nothing to ask.
    """
    from mailglass_reconcile.ops.checks import workers  # noqa: PLC0415 - Celery may be missing

    try:
        cluster = celery()
    except Exception as fault:  # creating an application's Celery app may raise anything
        message = f"the Celery app cannot be created ({type(fault).__name__})"
        findings.append(error(message, "check CELERY_BROKER_URL and MAILGLASS_REDIS_URL")._replace(check="celery"))
        return None
    if cluster.is_bundled and sweeps.is_own(app):
        message = f"your Celery app {sanitize(app)} runs the tasks, but it is not loaded here, so it was not checked"
        step = "name its module in MAILGLASS_IMPORTS and run the doctor again"
        findings.append(warning(message, step)._replace(check="celery"))
        return None
    with cluster:
        for check in _collect_checks(workers):
            findings += check.attempt(cluster)
            if _has_error(findings, "broker"):
                return None
        is_well = not any(_has_error(findings, name) for name in ("worker", "queues"))
        return cluster.command("beat") if is_well and cluster.is_waiting else None
