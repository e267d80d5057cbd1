"""A login with the privileges of a sweeper, with which the doctor connects."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

import mailglass_reconcile
from database import Database
from diagnosing import SWEEPERS, use_settings
from roles import temporary_role


@pytest.fixture
def role(db: Database, admin: sa.Engine) -> Iterator[str]:
    """Create a login with the sweeper's documented grants, with which the doctor connects."""
    with temporary_role(admin, "LOGIN PASSWORD 'secret'", db) as name:
        db.run(SWEEPERS.replace("mailglass_sweeper", name))
        url = make_url(db.url).set(username=name, password="secret")  # noqa: S106
        use_settings(db, database_url=url.render_as_string(hide_password=False))
        mailglass_reconcile.reconcile()
        yield name
        mailglass_reconcile.configure(engine=db.engine, settings=db.settings)
