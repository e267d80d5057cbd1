"""Databases with Mailglass's own tables: 0.1.1 in the schema `public`, 2.x in `mailglass`."""

import uuid
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from sqlalchemy.engine import make_url

import invariants
import mailglass_reconcile
import witness as watching
from catalog import Installation, installation, live
from database import Database
from database_pool import DatabasePool, keep_one_connection
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing.databases import Databases

SCHEMAS = {"0.1.1": "public", "2.x": "mailglass"}


_SUPPRESSIONS = "CREATE TABLE mailglass_suppressions (id uuid PRIMARY KEY)"


def make_mailglass_tables(url: str, shape: str, schema: str | None = None) -> Installation:
    """Make Mailglass's tables in a schema, by default that of the version, and return it.

    It is first in a test's search_path. 0.1.1 also gets the table that shows that Mailglass made the others.
    """
    schema = schema or SCHEMAS[shape]
    database = installation(_set_search_path(url, schema), schema)
    live(url, schema, shape).engine.dispose()
    if shape == "0.1.1":
        database.run(_SUPPRESSIONS)
    return database


def roll_back(database: Installation) -> None:
    """Drop Mailglass's tables, as its own migrations do."""
    database.run("""
        DROP TABLE mailglass_webhook_events, mailglass_events, mailglass_deliveries, mailglass_suppressions;
        DROP FUNCTION mailglass_raise_immutability();
        DROP FUNCTION IF EXISTS mailglass_webhook_signed_body_immutable()""")


def _set_search_path(url: str, schema: str) -> str:
    """Return the URL with a schema first in the search_path."""
    url_with_schema = make_url(url).update_query_dict({"options": f"-csearch_path={schema},public"})
    return url_with_schema.render_as_string(hide_password=False)


def settings_of(url: str, shape: str, **more: object) -> Settings:
    """Return the settings of a database, with its schema first in the search_path, so that tests need not name it."""
    return Settings(database_url=_set_search_path(url, SCHEMAS[shape]), database_schema=SCHEMAS[shape], **more)


@pytest.fixture(scope="session")
def template_of(
    make_database: Callable[..., str], drop_database: Callable[[str], None]
) -> Iterator[Callable[..., str]]:
    """Return a function that names a migrated template of a version, by default with a witness."""

    @cache
    def migrated(shape: str, *, witnessed: bool = True) -> str:
        name = f"mgtest_{uuid.uuid4().hex[:12]}"
        names.append(name)
        url = make_database(name)
        make_mailglass_tables(url, shape).engine.dispose()  # a database in use cannot be a template
        settings = settings_of(url, shape)
        engine = keep_one_connection(settings)
        runner.migrate(engine, settings, lambda line: None)
        if witnessed:
            watching.install(engine)
        engine.dispose()
        return name

    names: list[str] = []
    yield migrated
    for name in names:
        drop_database(name)


@pytest.fixture(params=["2.x", pytest.param("0.1.1", marks=pytest.mark.slow)])
def shape(request: pytest.FixtureRequest) -> str:
    """A version of Mailglass; `make test` runs the current one only."""
    return str(request.param)


@pytest.fixture
def unmigrated(empty_database_url: str, shape: str) -> Installation:
    """A database of each version with only Mailglass's tables."""
    return make_mailglass_tables(empty_database_url, shape)


@pytest.fixture(scope="session")
def pool_of(
    mailglass_databases: Databases, template_of: Callable[..., str], redis_url: str
) -> Iterator[Callable[[str], DatabasePool]]:
    """Return a function that returns the pool of a version's migrated database."""

    @cache
    def migrated_pool(shape: str) -> DatabasePool:
        pool = DatabasePool(
            mailglass_databases, template_of(shape), lambda url: settings_of(url, shape, redis_url=redis_url)
        )
        pools.append(pool)
        return pool

    pools: list[DatabasePool] = []
    yield migrated_pool
    for pool in pools:
        pool.close()


@pytest.fixture
def mailglass_db(
    shape: str, pool_of: Callable[[str], DatabasePool], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """A migrated database of each version, configured to be used, whose invariants are checked at the end."""
    with pool_of(shape).acquire() as pooled:
        monkeypatch.setenv("MAILGLASS_DATABASE_URL", pooled.url)
        monkeypatch.setenv("MAILGLASS_DATABASE_SCHEMA", pooled.settings.database_schema)
        monkeypatch.setenv("MAILGLASS_REDIS_URL", redis_url)
        mailglass_reconcile.configure(engine=pooled.engine, settings=pooled.settings)
        with watching.watched(pooled.engine, redis_url) as witness:
            used = Database(pooled.url, pooled.settings, pooled.engine, witness, pooled=pooled)
            yield used
            invariants.check(used, witness, holding=invariants.ALL - used.broken)
        mailglass_reconcile.configure()
