"""Roles under the names that the pages give them, which belong to a whole server."""

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines


@pytest.fixture
def server_roles(admin: sa.Engine) -> Iterator[Callable[..., None]]:
    """Return a function that creates documented roles in a database, one test at a time, and drops them afterwards."""
    created: list[tuple[str, tuple[str, ...]]] = []
    with admin.connect() as connection:
        connection.exec_driver_sql("SELECT pg_advisory_lock(hashtext('the roles of the pages'))")
        yield lambda url, *names: created.append((url, names))
        for url, names in created:
            engine = engines.create_engine(Settings(database_url=url))
            for name in names:
                with engine.begin() as owner:
                    owner.exec_driver_sql(f"DROP OWNED BY {name} CASCADE")
                connection.exec_driver_sql(f"DROP ROLE {name}")
            engine.dispose()
        connection.exec_driver_sql("SELECT pg_advisory_unlock(hashtext('the roles of the pages'))")
