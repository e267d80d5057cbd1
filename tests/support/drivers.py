"""Every driver that an application may use: psycopg, psycopg2, and asyncpg inside `run_sync`."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from marking import nightly_unless


@dataclass(frozen=True)
class Driver:
    """A driver, and a URL with it."""

    url: sa.URL

    @property
    def asynchronous(self) -> bool:
        """True if its connections need an event loop."""
        return self.url.drivername.endswith(("asyncpg", "async"))

    def run(self, work: Callable[[sa.Connection], Any], **options: object) -> Any:
        """Return the result of *work* on a connection whose transaction is then committed."""
        if self.asynchronous:
            return asyncio.run(self._run(work, options))
        with sa.create_engine(self.url, poolclass=sa.NullPool).connect().execution_options(**options) as connection:
            result = work(connection)
            connection.commit()
            return result

    async def _run(self, work: Callable[[sa.Connection], Any], options: dict[str, Any]) -> Any:
        engine = create_async_engine(self.url, poolclass=sa.NullPool)
        async with engine.connect() as connection:
            await connection.execution_options(**options)
            result = await connection.run_sync(work)
            await connection.commit()
            return result

    def run_session(self, work: Callable[[Session], Any]) -> Any:
        """Return the result of *work* in a Session that is then committed."""
        if self.asynchronous:
            return asyncio.run(self._run_session(work))
        with Session(sa.create_engine(self.url, poolclass=sa.NullPool)) as session:
            result = work(session)
            session.commit()
            return result

    async def _run_session(self, work: Callable[[Session], Any]) -> Any:
        async with AsyncSession(create_async_engine(self.url, poolclass=sa.NullPool)) as session:
            result = await session.run_sync(work)
            await session.commit()
            return result


DRIVERS = ("psycopg", "psycopg_async", "asyncpg", "psycopg2")


def on_drivers(
    name: str, values: Iterable[Any], elsewhere: Iterable[Any], in_ci: Iterable[Any] | None = None
) -> pytest.MarkDecorator:
    """Try all values of a parameter with psycopg, and those of *elsewhere* with the other drivers.

    The others differ in how a driver reports something, not in what Postgres does. Values that are not among those
    *in_ci* are tried at night.
    """
    pairs = [(DRIVERS[0], value) for value in values]
    pairs += [(driver, value) for value in elsewhere for driver in DRIVERS[1:]]
    variants = nightly_unless(lambda pair: in_ci is None or pair[1] in in_ci, pairs)
    return pytest.mark.parametrize(("driver", name), variants, indirect=["driver"])


@pytest.fixture(params=DRIVERS)
def driver(db, request) -> Driver:
    """Each driver, on the test's database."""
    return Driver(sa.make_url(db.url).set(drivername=f"postgresql+{request.param}"))
