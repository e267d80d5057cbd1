"""Every driver that an application may hand over: psycopg, psycopg2, and asyncpg inside `run_sync`."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session


@dataclass(frozen=True)
class Driver:
    """One driver's way to a database; `url` is on it."""

    url: sa.URL

    @property
    def asynchronous(self) -> bool:
        """Whether its connections need an event loop."""
        return self.url.drivername.endswith(("asyncpg", "async"))

    def run(self, work: Callable[[sa.Connection], Any], **options: object) -> Any:
        """Return what *work* returns, on a connection in a transaction, which is committed."""
        if self.asynchronous:
            return asyncio.run(self._run(work, options))
        with sa.create_engine(self.url, poolclass=sa.NullPool).connect().execution_options(**options) as connection:
            done = work(connection)
            connection.commit()
            return done

    async def _run(self, work: Callable[[sa.Connection], Any], options: dict[str, Any]) -> Any:
        engine = create_async_engine(self.url, poolclass=sa.NullPool)
        async with engine.connect() as connection:
            await connection.execution_options(**options)
            done = await connection.run_sync(work)
            await connection.commit()
            return done

    def run_session(self, work: Callable[[Session], Any]) -> Any:
        """Return what *work* returns, in a Session that is committed."""
        if self.asynchronous:
            return asyncio.run(self._run_session(work))
        with Session(sa.create_engine(self.url, poolclass=sa.NullPool)) as session:
            done = work(session)
            session.commit()
            return done

    async def _run_session(self, work: Callable[[Session], Any]) -> Any:
        async with AsyncSession(create_async_engine(self.url, poolclass=sa.NullPool)) as session:
            done = await session.run_sync(work)
            await session.commit()
            return done


@pytest.fixture(params=["psycopg", "psycopg_async", "asyncpg", "psycopg2"])
def driver(db, request) -> Driver:
    """Each driver, on the test's database."""
    return Driver(sa.make_url(db.url).set(drivername=f"postgresql+{request.param}"))
