"""Databases for tests: copies of a migrated template, which take milliseconds."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner


@dataclass(frozen=True)
class DatabaseCopy:
    """A migrated database of a test's own.

    Attributes:
        url: Its URL, for `MAILGLASS_DATABASE_URL` and `create_engine`; password included.
        settings: For `configure(settings=…)`: the URLs of the database and of the tests' Redis.
        engine: On psycopg 3; it keeps no connection open between uses.
    """

    url: str = field(repr=False)
    settings: Settings = field(repr=False)
    engine: sa.Engine = field(repr=False)


class Databases:
    """Makes and drops databases on one server, as a role that may do that."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self.engine = sa.create_engine(
            self._url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT", pool_pre_ping=True
        )
        """In autocommit mode, on the database that the server's URL names; it keeps its connection."""

    def create(self, name: str, template: str = "template0") -> str:
        """Create a database, as a copy of *template*, and return its URL."""
        with self.engine.connect() as connection:
            # Up to PostgreSQL 14 the only way; since then not the default, although it is several times as fast here.
            copied = " STRATEGY file_copy" if (connection.dialect.server_version_info or (0,)) >= (15,) else ""
            connection.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}" ENCODING utf8{copied}')
        return self._url.set(database=name).render_as_string(hide_password=False)

    def drop(self, name: str) -> None:
        """Drop a database, even if sessions are still connected."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    @contextmanager
    def template(self) -> Iterator[str]:
        """Yield the name of a migrated database, which others can be copies of, for as long as a block runs."""
        name = f"mgtest_template_{uuid.uuid4().hex[:12]}"
        settings = Settings(database_url=self.create(name))
        try:
            runner.migrate(engines.create_engine(settings), settings, lambda line: None)
            yield name
        finally:
            self.drop(name)

    @contextmanager
    def copy(self, template: str, redis_url: str) -> Iterator[DatabaseCopy]:
        """Yield a copy of *template* for as long as a block runs."""
        name = f"mgtest_{uuid.uuid4().hex[:12]}"
        settings = Settings(database_url=self.create(name, template), redis_url=redis_url)
        try:
            engine = engines.create_engine(settings)
            yield DatabaseCopy(engine.url.render_as_string(hide_password=False), settings, engine)
        finally:
            self.drop(name)
