"""The doctor as tests ask it, and the steps that its findings name."""

import time
import uuid

from pydantic import SecretStr

import granting
import mailglass_reconcile
from database import Database
from mailglass_reconcile.ops import checks
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING, Finding
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner

SWEEPERS = "".join(grant for grant in granting.STATEMENTS["mailglass_sweeper"] if "EXECUTE" not in grant)


def report(*, repair: bool = False) -> list[Finding]:
    """Return what the doctor finds without Celery."""
    return checks.diagnose(None, repair=repair)


def of(check: str, *, repair: bool = False) -> Finding:
    """Return the worst finding of one check."""
    found = [one for one in report(repair=repair) if one.check == check]
    assert found, f"the doctor says nothing of {check}"
    return sorted(found, key=lambda one: (OK, WARNING, ERROR).index(one.status))[-1]


def heal(db: Database, remedy: str | None) -> None:
    """Take the step that a finding names: the command in it, or its SQL as it stands."""
    assert remedy
    if remedy.startswith("run `mailglass-reconcile migrate`"):
        runner.migrate(db.engine, db.settings, lambda line: None)
        return
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in remedy.split("; "):
            connection.execution_options(no_parameters=True).exec_driver_sql(statement)


def uuid7(seconds_ago: float) -> str:
    """Return a UUIDv7 of a time in the past."""
    millisecond = f"{int((time.time() - seconds_ago) * 1000):012x}"
    return str(uuid.UUID(f"{millisecond}7{uuid.uuid4().hex[13:]}"))


def using(db: Database, **settings: str) -> None:
    """Let this process use other settings than the test's own; its engine follows `database_url`."""
    made = db.settings.model_copy(update={name: SecretStr(value) for name, value in settings.items()})
    mailglass_reconcile.configure(engine=engines.create_engine(made), settings=made)
