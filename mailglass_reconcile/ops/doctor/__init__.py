"""Looks at a whole installation, and says of each part whether it is well, why not, and what fixes it.

It writes nothing but a mark in Redis that lapses after a second, unless it is asked to repair the open orphans. Its
cost does not grow with the tables: see `ledger` and `backlog`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.ops.doctor import (
    backlog,
    configuration,
    database,
    history,
    ledger,
    links,
    redis,
    reports,
    rights,
    schema,
)
from mailglass_reconcile.ops.doctor.finding import ERROR, Check, Finding, attempt, error, ok, side_by_side, warning

OF_THE_SERVER = (("server", database.server), ("schema", schema.revision))
OF_THE_ROLE = (
    ("disk", database.disk),
    ("rights", rights.rights),
    ("rights", rights.retention),
    ("creators", rights.others),
)
OF_THE_TABLES = (
    ("triggers", schema.triggers),
    ("indexes", schema.indexes),
    ("open_set", ledger.open_set),
    ("other_reconciler", ledger.other_reconciler),
    ("links", links.links),
    ("deliveries", ledger.deliveries),
    ("sweeps", history.sweeps),
    ("handlers", history.handlers),
    ("linking", backlog.linking),
    ("tenants", backlog.webhooks),
    ("reports", reports.missing),
)
"""What is asked of Postgres; each has the name of the check that is blamed if it fails itself."""

WITHOUT_CELERY = "Celery is not installed here: run `mailglass-reconcile sweep` and `prune` from cron"


def diagnose(celery: Callable[[], Iterator[Finding]] | None, *, repair: bool = False) -> list[Finding]:
    """Return what all checks found; those of different servers run side by side, and none for longer than seconds.

    Args:
        celery: Makes the checks of Celery, after the modules of MAILGLASS_IMPORTS; None if it cannot be imported.
        repair: Make the open orphans equal the ledger first, which reads all of the ledger and may take minutes.
    """
    found = list(configuration.settings())
    if found[0].status == ERROR:
        return found
    found += attempt("imports", configuration.imports)
    found += _repaired() if repair else []
    groups = {"database": _postgres, "redis": redis.checks, "broker": _of_celery(celery)}
    found += side_by_side(groups)
    return [_lighter(one) for one in found] if history.without_celery(found) else found


def _lighter(one: Finding) -> Finding:
    """Return a warning for an error of Celery: sweeps run without it, so nothing is lost or late."""
    if one.status != ERROR or one.check not in ("broker", "worker", "queues"):
        return one
    return warning(one.check, one.message, f"nothing, if sweeps run from cron; otherwise {one.remedy}")


def _of_celery(celery: Callable[[], Iterator[Finding]] | None) -> Check:
    """Return the checks of Celery; the app is looked for in this thread, because Celery keeps it by thread."""
    if celery is None:
        return lambda: iter([ok("celery", WITHOUT_CELERY)])
    try:
        findings = celery()
    except Exception as fault:  # the app of the bundled module, or of an application, may fail to be made in any way
        message = f"the Celery app cannot be made ({type(fault).__name__})"
        return lambda: iter([error("celery", message, "check CELERY_BROKER_URL and MAILGLASS_REDIS_URL")])
    return lambda: findings


def _postgres() -> Iterator[Finding]:
    connecting: list[Finding] = []
    with database.opened(connecting) as connected:
        yield from connecting
        if connected is None:
            return
        current = True
        for one in database.each(connected, OF_THE_SERVER):
            current = current and not (one.check == "schema" and one.status == ERROR)
            yield one
        yield from database.each(connected, OF_THE_ROLE)
        yield from database.each(connected, OF_THE_TABLES) if current else ()


def _repaired() -> list[Finding]:
    """Repair the open orphans, and return what was done, or why it could not be."""
    with database.opened([]) as connected:
        try:
            return [] if connected is None else [ok("open_set", ledger.repair_it(connected))]
        except MailglassReconcileError as fault:
            return [error("open_set", f"could not repair: {fault}", "fix the other findings first, then repair")]
