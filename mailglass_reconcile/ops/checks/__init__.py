"""One list of checks: the doctor runs all, and `status --check`, the page, `/metrics` and Django the cheap ones.

Each is a function of a module that this one lists; what they find is one finding for each cause, the gravest first.
Nothing is written but a mark in Redis that expires after a second, unless a repair is requested. The cost does not grow
with the tables.
"""

from __future__ import annotations

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
    OK,
    READABLE,
    WARNING,
    Check,
    Finding,
    Look,
    Needs,
    error,
    merged,
    ok,
)
from mailglass_reconcile.rules import connection_errors
from mailglass_reconcile.store.database import Connected
from mailglass_reconcile.store.engines import server_of

if TYPE_CHECKING:
    from mailglass_reconcile.ops.checks.workers import Cluster

__all__ = ["ERROR", "OK", "WARNING", "Finding", "Look", "cheap", "diagnose"]

STATEMENT_TIMEOUT_MS = 2_000


def _of(*modules: ModuleType) -> tuple[Check, ...]:
    return tuple(one for module in modules for one in vars(module).values() if isinstance(one, Check))


CHECKS = _of(configuration, server, schema, sweeps, backlog, handlers, recording, ledger, mailglass)
"""All but those of `redis_server` and `workers`, which load what other commands do without; causes before effects."""


def _needing(needs: Needs, *, only_cheap: bool = False) -> Iterator[Check]:
    return (one for one in CHECKS if one.needs == needs and (one.cheap or not only_cheap))


def cheap(look: Look) -> list[Finding]:
    """Return what the cheap checks find, the gravest first; what is well is not among it."""
    found: list[Finding] = []
    for one in _needing("database", only_cheap=True):
        found += one.findings(look)
        if one.name in READABLE and _is_wrong(found, one.name):
            break
    return [one for one in merged(found) if one.status != OK]


def _is_wrong(found: Iterable[Finding], name: str) -> bool:
    return any(one.check == name and one.status == ERROR for one in found)


def diagnose(celery: Callable[[], Cluster] | None, *, repair: bool = False) -> list[Finding]:
    """Return what all checks found, the gravest first.

    *celery* makes the Celery app and its broker, after the modules of MAILGLASS_IMPORTS; None if Celery is missing.
    With *repair*, the open orphans are made equal to the ledger first, which reads all of it and may take minutes.
    """
    found: list[Finding] = []
    for one in _needing("nothing"):
        found += one.attempted()
        if _is_wrong(found, "settings"):
            return found
    uses_celery = celery is not None
    connected = _connected(found)
    if connected is not None:
        with connected.connection:
            found += _repaired(connected) if repair else []
            found += _of_database(connected)
            uses_celery = uses_celery and not _runs_without_celery(connected)
    found += _of_redis(uses_celery=uses_celery)
    found += _of_celery(celery) if uses_celery and celery else [ok(WITHOUT_CELERY)._replace(check="celery")]
    return merged(found)


WITHOUT_CELERY = "Celery does not run the sweeps here"


def _connected(found: list[Finding]) -> Connected | None:
    """Connect, and note in *found* how that went."""
    try:
        database = runtime.database()
        server = server_of(database.engine)
        connection = database.engine.connect()
    except ConfigurationError as fault:
        step = "set MAILGLASS_DATABASE_URL to postgresql://user:password@host/name"
        found.append(error(str(fault), step)._replace(check="database"))
    except sa.exc.DBAPIError as fault:
        said, remedy = connection_errors.classify(fault, server)
        message = f"cannot connect to {server.kind} at {server.location}: {said}"
        found.append(error(message, remedy)._replace(check="database"))
    else:
        found.append(ok(f"connected to {server.kind} at {server.location}")._replace(check="database"))
        return Connected(connection, database.settings)
    return None


def _of_database(connected: Connected) -> Iterator[Finding]:
    """Make each check in a transaction of its own, until one finds that the others cannot be made."""
    for one in _needing("database"):
        found = one.within(_looking(connected)).attempted()
        yield from found
        is_wrong = any(finding.status == ERROR for finding in found)
        if connected.connection.invalidated or (one in (schema.readable, schema.revision) and is_wrong):
            return


@contextmanager
def _looking(connected: Connected) -> Iterator[Look]:
    with database_errors(), connected.reading(STATEMENT_TIMEOUT_MS) as tx:
        yield Look(tx, thorough=True)


def _runs_without_celery(connected: Connected) -> bool:
    try:
        with _looking(connected) as look:
            return sweeps.runs_without_celery(look)
    except MailglassReconcileError:
        return False


def _of_redis(*, uses_celery: bool) -> Iterator[Finding]:
    from mailglass_reconcile.ops.checks import redis_server  # noqa: PLC0415 - loading Redis takes a tenth of a second

    redis = redis_server.Redis(is_wanted=uses_celery or runtime.is_redis_configured())
    for one in _of(redis_server):
        yield from one.attempted(redis)
        if redis.fault is not None:
            return


def _repaired(connected: Connected) -> list[Finding]:
    """Repair the open orphans, and return what was done, or why it could not be."""
    try:
        return [ok(ledger.repaired(connected))._replace(check="open_set")]
    except MailglassReconcileError as fault:
        step = "fix the other findings first, then repair"
        return [error(f"could not repair: {fault}", step, READABLE)._replace(check="open_set")]


def _of_celery(celery: Callable[[], Cluster]) -> Iterator[Finding]:
    from mailglass_reconcile.ops.checks import workers  # noqa: PLC0415 - Celery may be missing

    try:
        cluster = celery()
    except Exception as fault:  # the app of the bundled module, or of an application, may fail to be made in any way
        message = f"the Celery app cannot be made ({type(fault).__name__})"
        yield error(message, "check CELERY_BROKER_URL and MAILGLASS_REDIS_URL")._replace(check="celery")
        return
    with cluster:
        for one in _of(workers):
            found = one.attempted(cluster)
            yield from found
            if one.name == "broker" and _is_wrong(found, "broker"):
                return
