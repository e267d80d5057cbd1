"""The doctor in tests, and the remedies of its findings."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.engine import make_url

import granting
import mailglass_reconcile
from database import Database
from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING, Finding
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner
from roles import temporary_role

SWEEPERS = "".join(
    grant for grant in granting.STATEMENTS["mailglass_sweeper"] if "mailglass_reconcile_prune_" not in grant
)


def report(*, repair: bool = False) -> list[Finding]:
    """Return the doctor's findings without Celery."""
    return checks.diagnose(None, repair=repair)


def worst_finding(check: str, *, repair: bool = False) -> Finding:
    """Return the worst finding of one check."""
    findings = [finding for finding in report(repair=repair) if finding.check == check]
    assert findings, f"the doctor says nothing of {check}"
    return sorted(findings, key=lambda finding: (OK, WARNING, ERROR).index(finding.status))[-1]


def heal(db: Database, remedy: str | None) -> None:
    """Apply a remedy: run its command, or its SQL as it stands."""
    assert remedy
    if remedy.startswith("run `mailglass-reconcile migrate`"):
        runner.migrate(db.engine, db.settings, lambda line: None)
        return
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in remedy.split("; "):
            connection.execution_options(no_parameters=True).exec_driver_sql(statement)


def use_settings(db: Database, **settings: str) -> None:
    """Configure this process with other settings than the test's; its engine follows `database_url`."""
    changed = db.settings.model_copy(update={name: SecretStr(value) for name, value in settings.items()})
    mailglass_reconcile.configure(engine=engines.create_engine(changed), settings=changed)


@contextmanager
def sweeper(db: Database, admin: sa.Engine) -> Iterator[Settings]:
    """Create a login with a sweeper's grants on these tables, and restore the owner's settings at the end."""
    schema = db.settings.database_schema
    with temporary_role(admin, "LOGIN PASSWORD 'secret'", db) as role:
        db.run(f"GRANT USAGE ON SCHEMA {schema} TO {role}; {SWEEPERS.replace('mailglass_sweeper', role)}")
        url = make_url(db.url).set(username=role, password="secret").render_as_string(hide_password=False)  # noqa: S106
        try:
            yield db.settings.model_copy(update={"database_url": SecretStr(url)})
        finally:
            mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
