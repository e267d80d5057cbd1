"""Who may plant objects with our names in the schema."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from diagnosing import heal, worst_finding
from mailglass_reconcile.ops.checks import OK, WARNING
from mailglass_reconcile.ops.status import load_problems
from roles import temporary_role


@pytest.fixture
def role(admin: sa.Engine, db) -> Iterator[str]:
    """A role of another team's."""
    with temporary_role(admin, "", db) as name:
        yield name


def test_roles_that_may_create_objects_in_the_schema_are_a_warning_of_the_doctor_with_the_revoke(db, role):
    """No other surface shows it; the owner of the ledger may create them."""
    db.run(f"GRANT CREATE ON SCHEMA public TO PUBLIC, {role}")
    finding = worst_finding("names")
    assert (finding.status, finding.message) == (
        WARNING,
        f"PUBLIC, {role} may create objects in schema public, also with our names",
    )
    assert not any(role in problem for problem in load_problems(db.database))
    heal(db, finding.remedy)
    assert worst_finding("names").status == OK


def test_neither_the_owner_of_the_ledger_nor_of_the_schema_is_one_of_them(db, role):
    """Nor their members."""
    db.run(f"GRANT CREATE ON SCHEMA public TO {role}; ALTER TABLE mailglass_events OWNER TO {role}")
    try:
        assert worst_finding("names").status == OK
    finally:
        db.run("ALTER TABLE mailglass_events OWNER TO postgres")
    db.run(f"ALTER SCHEMA public OWNER TO {role}")
    assert worst_finding("names").status == OK
    db.run("ALTER SCHEMA public OWNER TO pg_database_owner")
