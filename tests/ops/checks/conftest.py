"""A login with the privileges of a sweeper, with which the doctor connects."""

import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

import mailglass_reconcile
from database import Database
from diagnosing import SWEEPERS, use_settings


@pytest.fixture
def role(db: Database, admin: sa.Engine) -> Iterator[str]:
    """Create a login with the sweeper's documented grants, with which the doctor connects."""
    name = f"mgtest_role_{uuid.uuid4().hex[:12]}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    with db.engine.begin() as connection:
        connection.exec_driver_sql(SWEEPERS.replace("mailglass_sweeper", name))
    url = make_url(db.url).set(username=name, password="secret")  # noqa: S106
    use_settings(db, database_url=url.render_as_string(hide_password=False))
    mailglass_reconcile.reconcile()
    yield name
    mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
    with db.engine.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {name}")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP ROLE {name}")
