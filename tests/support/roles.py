"""Roles of one test."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa


@contextmanager
def temporary_role(admin: sa.Engine, attributes: str = "", *databases: Any) -> Iterator[str]:
    """Create a role with attributes such as `LOGIN`; at the end drop it, with what it owns or may do in *databases*."""
    name = f"mgtest_role_{uuid.uuid4().hex[:12]}"
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} {attributes}")
    try:
        yield name
    finally:
        for database in databases:
            database.run(f"DROP OWNED BY {name} CASCADE")
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP ROLE {name}")
