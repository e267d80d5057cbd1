"""Databases that Mailglass itself has made: of 0.1.1 in the schema `public`, of 2.x in `mailglass`."""

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


def made(url: str, shape: str, schema: str | None = None) -> Installation:
    """Return a schema, that of the version unless given, in which Mailglass has made its tables.

    Statements of a test see it first. What 0.1.1 has beside the tables that the schema file makes tells whose they are.
    """
    schema = schema or SCHEMAS[shape]
    database = installation(_seeing(url, schema), schema)
    live(url, schema, shape).engine.dispose()
    if shape == "0.1.1":
        database.run(_SUPPRESSIONS)
    return database


def roll_back(database: Installation) -> None:
    """Take Mailglass's tables away, as its own migrations do."""
    database.run("""
        DROP TABLE mailglass_webhook_events, mailglass_events, mailglass_deliveries, mailglass_suppressions;
        DROP FUNCTION mailglass_raise_immutability();
        DROP FUNCTION IF EXISTS mailglass_webhook_signed_body_immutable()""")


def _seeing(url: str, schema: str) -> str:
    """Return the URL of a database of which statements see a schema first."""
    seen = make_url(url).update_query_dict({"options": f"-csearch_path={schema},public"})
    return seen.render_as_string(hide_password=False)


def settings_of(url: str, shape: str, **more: object) -> Settings:
    """Return the settings of a database; statements of a test see its schema first, so that they need not name it."""
    return Settings(database_url=_seeing(url, SCHEMAS[shape]), database_schema=SCHEMAS[shape], **more)


@pytest.fixture(scope="session")
def template_of(
    make_database: Callable[..., str], drop_database: Callable[[str], None]
) -> Iterator[Callable[..., str]]:
    """Returns the name of a migrated database of a version, to copy; unless told otherwise, with a witness."""

    @cache
    def migrated(shape: str, *, witnessed: bool = True) -> str:
        name = f"mgtest_{uuid.uuid4().hex[:12]}"
        names.append(name)
        url = make_database(name)
        made(url, shape).engine.dispose()  # a database is not copied while it is used
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
    """A version of Mailglass; a newcomer's run takes today's only."""
    return str(request.param)


@pytest.fixture
def unmigrated(empty_database_url: str, shape: str) -> Installation:
    """A database of each version in which only Mailglass has made its tables."""
    return made(empty_database_url, shape)


@pytest.fixture(scope="session")
def pool_of(
    mailglass_databases: Databases, template_of: Callable[..., str], redis_url: str
) -> Iterator[Callable[[str], DatabasePool]]:
    """Returns what lends a migrated database of a version to one test after the other."""

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
