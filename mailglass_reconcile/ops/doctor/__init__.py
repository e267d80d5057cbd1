"""Looks at a whole installation, and says of each part whether it is well, why not, and what fixes it.

It writes nothing but a mark in Redis that lapses after a second, unless it is asked to repair the open orphans. Its
cost does not grow with the tables: see `open_set`, `traffic` and `backlog`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from mailglass_reconcile.errors import MailglassReconcileError
from mailglass_reconcile.ops.doctor import (
    backlog,
    configuration,
    database,
    history,
    open_set,
    redis,
    rights,
    rounds,
    schema,
    traffic,
)
from mailglass_reconcile.ops.doctor.finding import ERROR, Finding, attempt, error, ok, warning
from mailglass_reconcile.runtime import get_settings

Findings = Iterator[Finding]

WITHOUT_CELERY = "Celery is not installed here: run `mailglass-reconcile sweep` and `prune` from cron"


def diagnose(celery: Callable[[], Findings] | None, *, repair: bool = False) -> list[Finding]:
    """Return what all checks found; those of different servers run side by side, and none for longer than seconds.

    Args:
        celery: Makes the checks of Celery, after the modules of MAILGLASS_IMPORTS; None if it cannot be imported.
        repair: Make the open orphans equal the ledger first, which reads all of the ledger and may take minutes.
    """
    found = list(configuration.settings())
    if found[0].status == ERROR:
        return found
    found += attempt("imports", configuration.imports)
    repaired, failures = _repaired() if repair else ("", [])
    groups: dict[str, rounds.Group] = {
        "database": lambda: _postgres(repaired),
        "redis": redis.checks,
        "broker": _of_celery(celery),
    }
    found += [*failures, *rounds.run(groups)]
    return [_lighter(one) for one in found] if history.without_celery(found) else found


def _lighter(one: Finding) -> Finding:
    """Return a warning for an error of Celery: sweeps run without it, so nothing is lost or late."""
    if one.status != ERROR or one.check not in ("broker", "worker", "queues"):
        return one
    return warning(one.check, one.message, f"nothing, if sweeps run from cron; otherwise {one.remedy}")


def _of_celery(celery: Callable[[], Findings] | None) -> rounds.Group:
    """Return the checks of Celery; the app is looked for in this thread, because Celery keeps it by thread."""
    if celery is None:
        return lambda: iter([ok("celery", WITHOUT_CELERY)])
    try:
        findings = celery()
    except Exception as fault:  # the app of the bundled module, or of an application, may fail to be made in any way
        message = f"the Celery app cannot be made ({type(fault).__name__})"
        return lambda: iter([error("celery", message, "check MAILGLASS_BROKER_URL and MAILGLASS_REDIS_URL")])
    return lambda: findings


def _postgres(repaired: str) -> Iterator[Finding]:
    connecting: list[Finding] = []
    with database.opened(connecting) as asked:
        yield from connecting
        if asked is None:
            return
        settings = get_settings()
        current = yield from _schema(asked)
        yield from asked.each([("disk", database.disk), ("rights", rights.rights), ("creators", rights.others)])
        if current:
            looks: list[tuple[str, database.Look]] = [
                ("triggers", schema.triggers),
                ("indexes", schema.indexes),
                ("open_set", lambda tx: open_set.open_set(tx, settings, repaired=repaired)),
                ("other_reconciler", traffic.other_reconciler),
                ("deliveries", traffic.deliveries),
                ("sweeps", history.sweeps),
                ("handlers", history.handlers),
                ("linking", lambda tx: backlog.linking(tx, settings)),
                ("tenants", lambda tx: backlog.webhooks(tx, settings)),
            ]
            yield from asked.each(looks)


def _schema(asked: database.Asked) -> Generator[Finding, None, bool]:
    """Yield what is found of the server and the revision; return whether the tables are what this version needs."""
    current = True
    for one in asked.each([("server", database.server), ("schema", schema.revision)]):
        current = current and not (one.check == "schema" and one.status == ERROR)
        yield one
    return current


def _repaired() -> tuple[str, list[Finding]]:
    """Repair the open orphans, and return what was done, or the finding of why it could not be."""
    with database.opened([]) as asked:
        if asked is None:
            return "", []
        try:
            return open_set.repair_it(asked), []
        except MailglassReconcileError as fault:
            return "", [error("open_set", f"could not repair: {fault}", "fix the other findings first, then repair")]
