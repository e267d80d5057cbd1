"""Databases that Mailglass itself has made: of 0.1.1 in the schema `public`, of 2.x in `mailglass`."""

import uuid
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from sqlalchemy.engine import make_url

import invariants
import mailglass_reconcile
import witness as watching
from catalog import Installation, live
from conftest import Database
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.migration import runner

SCHEMAS = {"0.1.1": "public", "2.x": "mailglass"}


def settings_of(url: str, shape: str, **more: object) -> Settings:
    """Return the settings of a database; statements of a test see its schema first, so that they need not name it."""
    seen = make_url(url).update_query_dict({"options": f"-csearch_path={SCHEMAS[shape]},public"})
    text = seen.render_as_string(hide_password=False)
    return Settings(database_url=text, database_schema=SCHEMAS[shape], **more)


@pytest.fixture(scope="session")
def template_of(
    make_database: Callable[..., str], drop_database: Callable[[str], None]
) -> Iterator[Callable[[str], str]]:
    """Returns the name of a migrated database of a version, to copy."""

    @cache
    def made(shape: str) -> str:
        name = f"mgtest_{uuid.uuid4().hex[:12]}"
        names.append(name)
        url = make_database(name)
        live(url, SCHEMAS[shape], shape)
        settings = settings_of(url, shape)
        engine = engines.create_engine(settings)
        runner.migrate(engine, settings, lambda line: None)
        watching.install(engine)
        return name

    names: list[str] = []
    yield made
    for name in names:
        drop_database(name)


@pytest.fixture(params=["2.x", pytest.param("0.1.1", marks=pytest.mark.slow)])
def shape(request: pytest.FixtureRequest) -> str:
    """A version of Mailglass; a newcomer's run takes today's only."""
    return str(request.param)


@pytest.fixture
def unmigrated(empty_database_url: str, shape: str) -> Installation:
    """A database of each version in which only Mailglass has made its tables."""
    return live(empty_database_url, SCHEMAS[shape], shape)


@pytest.fixture
def beside(
    shape: str,
    template_of: Callable[[str], str],
    make_database: Callable[..., str],
    drop_database: Callable[[str], None],
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Database]:
    """A migrated database of each version, configured to be used, whose invariants are checked at the end."""
    name = f"mgtest_{uuid.uuid4().hex[:12]}"
    settings = settings_of(make_database(name, template_of(shape)), shape, redis_url=redis_url)
    url = settings.database_url.get_secret_value()
    engine = engines.create_engine(settings)
    monkeypatch.setenv("MAILGLASS_DATABASE_URL", url)
    monkeypatch.setenv("MAILGLASS_DATABASE_SCHEMA", settings.database_schema)
    monkeypatch.setenv("MAILGLASS_REDIS_URL", redis_url)
    mailglass_reconcile.configure(engine=engine, settings=settings)
    with watching.watched(engine, redis_url) as witness:
        made = Database(url, settings, engine, witness)
        yield made
        with made.on_one_connection() as judged:
            invariants.check(judged, witness, holding=invariants.ALL - made.broken)
    mailglass_reconcile.configure()
    drop_database(name)
