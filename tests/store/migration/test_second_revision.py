"""A next version with a second revision: it runs once, in every way, while writers and the version before go on.

The version is a copy of this one, with a column, an index, a second version of a function, and nothing dropped.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

import mailglass_reconcile
import processes
from catalog import Installation, client, installation, lines_of_ours, live, url_of
from history import ORPHAN, insert_history, new_id, sweep, write_until
from mailglass_reconcile import record_webhook
from mailglass_reconcile.store.engines import create_engine
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.store.revision import VERSION
from processes import Process
from recording import event
from revisions import NEXT
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
NEWEST = sorted(path.stem for path in ROOT.glob("alembic/versions/*.py"))[-1]

REVISION = '''"""The priority of open orphans."""

import sqlalchemy as sa
from alembic import op

from mailglass_reconcile.store.migration.operations import execute, schema_name

revision = "NEXT"
down_revision = "VERSION"


def upgrade() -> None:
    op.add_column("mailglass_open_orphans", sa.Column("priority", sa.SmallInteger()), schema=schema_name())
    execute("UPDATE {schema}.mailglass_open_orphans SET priority = 1 WHERE rank IS NULL")
'''.replace("NEXT", NEXT).replace("VERSION", VERSION)

INDEX = """
-- step: index mailglass_open_orphans_priority_idx
CREATE INDEX mailglass_open_orphans_priority_idx ON {schema}.mailglass_open_orphans (priority, arrived_at);
"""

FUNCTION = """
-- step: function mailglass_reconcile_credible_v2
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_credible_v2(occurred_at timestamp, arrived_at timestamp)
RETURNS timestamp LANGUAGE sql IMMUTABLE AS $$
SELECT least({schema}.mailglass_reconcile_credible_v1(occurred_at, arrived_at), arrived_at)
$$;
"""

DJANGO = f"""
from django.db import migrations
from mailglass_reconcile.contrib.django import migration_operations

class Migration(migrations.Migration):
    atomic = False
    dependencies = (("mailglass_reconcile", "{NEWEST}"),)
    operations = (migration_operations.Migrate("{NEXT}"),)
"""

MANAGE = """
import django, os, sys
from django.conf import settings
from sqlalchemy.engine import make_url
url = make_url(os.environ.pop("MAILGLASS_DATABASE_URL"))
settings.configure(
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.contenttypes", "mailglass_reconcile.contrib.django"],
    DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "NAME": url.database, "USER": url.username or "",
        "PASSWORD": url.password or "", "HOST": url.query.get("host") or url.host or "", "PORT": url.port or "",
    }},
)
django.setup()
from django.core.management import call_command
call_command("migrate", *sys.argv[1:] or ["mailglass_reconcile"], verbosity=0, interactive=False)
"""


PRIORITY = "SELECT priority FROM mailglass_open_orphans WHERE event_id = CAST(:id AS uuid)"
BUILDING = """
SELECT pid FROM pg_stat_activity
 WHERE query LIKE 'CREATE INDEX CONCURRENTLY%priority_idx%' AND state = 'active' AND pid <> pg_backend_pid()
"""


class NextVersion:
    """A folder with the next version's package."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(ROOT / "mailglass_reconcile", folder / "mailglass_reconcile")
        shutil.copytree(ROOT / "alembic", folder / "alembic")
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / f"alembic/versions/{NEXT}_priority.py").write_text(REVISION)
        (folder / f"mailglass_reconcile/contrib/django/migrations/{NEXT}_priority.py").write_text(DJANGO)
        for name, text in (("open_orphans", INDEX), ("projection", FUNCTION)):
            with (folder / f"alembic/schema/{name}.sql").open("a") as file:
                file.write(text)
        self.folder = folder
        self._forker = processes.Forker(Path(sys.executable), os.environ, IMPORTED, folder)

    def start(self, database: Installation, *arguments: str) -> AbstractContextManager[Process]:
        """Start a Python with this version on a database."""
        url = database.settings.database_url
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "MAILGLASS_DATABASE_URL": url.get_secret_value() if url else "",
            "MAILGLASS_DATABASE_SCHEMA": database.settings.database_schema,
        }
        return processes.start(arguments, environment, cwd=self.folder, forked=self._forker)

    def run(self, database: Installation, *arguments: str) -> str:
        """Run it, which must succeed, and return its output."""
        with self.start(database, *arguments) as process:
            assert process.wait() == 0, process.output
            return process.stdout

    def psql(self, database: Installation, *arguments: str) -> None:
        """Pipe a plan into psql; what stops it is a lock, and the next plan goes on."""
        for _ in range(10):
            plan = self.run(database, *arguments)
            command = [client("psql", database), "--no-psqlrc", "-q", "-v", "ON_ERROR_STOP=1", url_of(database)]
            result = subprocess.run(command, input=plan, text=True, capture_output=True, check=False)
            if result.returncode == 0:
                return
            assert "lock timeout" in result.stderr, result.stderr
        pytest.fail("psql never got its locks")


IMPORTED = (
    *("alembic.config", "django.core.management", "django.db.backends.postgresql.base", "psycopg"),
    *("mailglass_reconcile.store.migration.runner", "sqlalchemy.dialects.postgresql.psycopg"),
)
"""What the next version's processes import before they are forked."""
COMMAND, ALEMBIC = ("-m", "mailglass_reconcile", "migrate"), ("-m", "alembic", "upgrade", "head")
STARTED = {"command": COMMAND, "alembic": ALEMBIC, "django": ("-c", MANAGE)}
WAYS: dict[str, Callable[[NextVersion, Installation], object]] = {
    **{name: lambda version, database, way=way: version.run(database, *way) for name, way in STARTED.items()},
    "plan": lambda version, database: version.psql(database, *COMMAND, "--plan"),
    "alembic --sql": lambda version, database: version.psql(database, *ALEMBIC, "--sql"),
}


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> NextVersion:
    """The next version's package."""
    return NextVersion(tmp_path_factory.mktemp("next"))


@contextmanager
def writers(database: Installation, number: int = 2) -> Iterator[list[int]]:
    """Let sessions with Mailglass's lock timeout write while the block runs; none may fail."""
    stop, written = threading.Event(), []
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(write_until, stop, database, written) for _ in range(number)]
        try:
            wait_until(lambda: len(written) > 20)
            yield written
        finally:
            stop.set()
        for writer in running:
            writer.result(PATIENCE)


@contextmanager
def recorder(database: Installation) -> Iterator[list[str]]:
    """Record webhooks with the version before, this process's, while the block runs; none may fail."""
    stop, recorded = threading.Event(), []
    engine = create_engine(database.settings)
    mailglass_reconcile.configure(engine=engine, settings=database.settings)

    def record() -> None:
        while not stop.is_set():
            message_id = new_id()
            with engine.begin() as connection:
                record_webhook(
                    connection, provider="postmark", events=[event(message_id, provider_event_id=message_id)]
                )
            recorded.append(message_id)

    with ThreadPoolExecutor() as pool:
        running = pool.submit(record)
        try:
            wait_until(lambda: len(recorded) > 5)
            yield recorded
        finally:
            stop.set()
        running.result(PATIENCE)
    mailglass_reconcile.configure()
    engine.dispose()


def columns(database: Installation) -> list[str]:
    """Return the columns of the open orphans."""
    return database.values(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'mailglass_open_orphans'::regclass AND attnum > 0"
        " AND NOT attisdropped"
    )


@pytest.mark.parametrize(
    ("way", "schema", "shape"),
    [
        ("command", "public", None),
        ("command", "Mail_Glass", "2.x"),
        ("alembic", "Mail_Glass", "2.x"),
        ("django", "public", "0.1.1"),
        ("plan", "Mail_Glass", "2.x"),
        ("alembic --sql", "public", "0.1.1"),
    ],
)
def test_a_second_revision_runs_once_while_writers_write(
    empty_database_url, redis_url, next_version, way, schema, shape
):
    """Rows stay, the index is valid, and the version before sweeps on the new schema."""
    database = live(empty_database_url, schema, shape) if shape else installation(empty_database_url, schema)
    database.migrate()
    still_open, *_ = insert_history(database)
    writing = _named(database)
    before = database.rows()["mailglass_deliveries"]
    with writers(writing) as written, recorder(database) as recorded:
        count = len(written)
        WAYS[way](next_version, database)
        wait_until(lambda: len(written) > count + 20)
        count = len(recorded)
        wait_until(lambda: len(recorded) > count + 5)
    assert database.values("SELECT version_num FROM mailglass_reconcile_version") == [NEXT]
    assert "priority" in columns(database)
    assert database.values(
        "SELECT i.indisvalid FROM pg_index AS i WHERE i.indexrelid = 'mailglass_open_orphans_priority_idx'::regclass"
    ) == [True]
    functions = "SELECT proname FROM pg_proc WHERE proname LIKE 'mailglass_reconcile_credible%' ORDER BY 1"
    assert database.values(functions) == ["mailglass_reconcile_credible_v1", "mailglass_reconcile_credible_v2"]
    # An orphan that had expired when it came, too.
    assert len(database.open_set()) == len(written) + len(recorded) + 2
    assert database.values(PRIORITY, id=still_open) == [1]
    assert database.rows()["mailglass_deliveries"] == before
    complete = database.objects()
    assert f"nothing to do: the database is at revision {NEXT}\n" in next_version.run(database, *COMMAND)
    # The version before: its processes, a container of it that migrates first, and its check.
    warning = f"warning: nothing was changed, because the database is at revision {NEXT}"
    assert database.migrate()[-1].startswith(warning)
    assert database.is_current()
    database.run(ORPHAN.format(id=new_id(), age="5 minutes"))
    assert sweep(database, redis_url) >= 1
    assert database.objects() == complete


def _named(database: Installation) -> Installation:
    """Return the installation with its schema in the search_path of the URL, for writers."""
    url = make_url(database.settings.database_url.get_secret_value())
    with_path = url.update_query_dict({"options": f'-csearch_path="{database.settings.database_schema}"'})
    return installation(with_path.render_as_string(hide_password=False), database.settings.database_schema)


def test_a_new_database_gets_both_revisions_and_equals_an_upgraded_one(
    empty_database_url, make_database, drop_database, next_version
):
    """There is one way to the schema."""
    name = f"mgtest_{new_id().replace('-', '')[:12]}"
    try:
        upgraded, new = installation(empty_database_url), installation(make_database(name))
        upgraded.migrate()
        for database in (upgraded, new):
            next_version.run(database, *COMMAND)
        assert new.objects() == upgraded.objects()
        next_version.run(new, "-m", "mailglass_reconcile", "migrate", "--remove", "--tables", "--yes")
        assert not any("mailglass" in line for line in new.objects())
    finally:
        drop_database(name)


WAITING_TO_ALTER = """
SELECT pid FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%priority%'
"""


def test_a_transaction_that_holds_the_table_delays_a_revision_and_fails_no_writer(empty_database_url, next_version):
    """The revision is tried again until it gets its lock within a tenth of a second."""
    database = live(empty_database_url)
    database.migrate()
    with writers(database) as written, ExitStack() as stack:
        with database.writing(ORPHAN.format(id=new_id(), age="1 minute")):
            process = stack.enter_context(next_version.start(database, *COMMAND))
            wait_until(lambda: database.values(WAITING_TO_ALTER) or process.poll() is not None, PATIENCE)
            before = len(written)
            wait_until(lambda: len(written) > before + 50)
            assert process.poll() is None
        assert process.wait() == 0, process.output
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {NEXT}\n"


def test_an_interrupted_build_of_the_new_index_is_repeated(empty_database_url, next_version):
    """The revision is recorded already; the invalid index is named, and built again."""
    database = live(empty_database_url)
    database.migrate()
    insert_history(database)
    with psycopg.connect(url_of(database)) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("SELECT 1")  # a build waits for the end of an older snapshot, the revision does not
        with next_version.start(database, *COMMAND) as process:
            wait_until(lambda: database.values(BUILDING) or process.poll() is not None, PATIENCE)
            database.values(BUILDING.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"))
            assert process.wait() == 1, process.output
            assert "\n" not in process.stderr.strip()
    with next_version.start(database, *COMMAND, "--check") as check:
        check.wait()
        assert "index mailglass_open_orphans_priority_idx is" in check.stdout
    lines = next_version.run(database, *COMMAND)
    assert "mailglass_open_orphans_priority_idx concurrently" in lines
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {NEXT}\n"


@pytest.mark.parametrize("way", STARTED)
def test_each_way_takes_the_lock_of_migrations(empty_database_url, next_version, way):
    """It waits for another migration, also Alembic's own command."""
    database = live(empty_database_url)
    with ExitStack() as stack:
        other = stack.enter_context(psycopg.connect(url_of(database), autocommit=True))
        other.execute("SELECT pg_advisory_lock(hashtext('mailglass_reconcile migrate'))")
        process = stack.enter_context(next_version.start(database, *STARTED[way]))
        asking = (  # it does so five times a second
            "SELECT query_start FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND (query LIKE '%pg_try_advisory_lock%' OR query = 'COMMIT')"
        )
        asked_at: set[object] = set()
        wait_until(
            lambda: asked_at.update(database.values(asking)) or len(asked_at) > 3 or process.poll() is not None, 30
        )
        assert process.poll() is None
        assert not lines_of_ours(database.objects())
        other.close()
        assert process.wait() == 0, process.output
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {NEXT}\n"


def test_all_ways_at_once_end_well(empty_database_url, next_version):
    """On an empty database, each but the first finds nothing to do."""
    database = installation(empty_database_url)
    with ExitStack() as stack:
        for process in [
            stack.enter_context(next_version.start(database, *way)) for way in (*STARTED.values(), ALEMBIC)
        ]:
            assert process.wait() == 0, process.output
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {NEXT}\n"


DOWNGRADE = ("-m", "alembic", "downgrade")
REMOVED: dict[str, Callable[[NextVersion, Installation], object]] = {
    "command": lambda version, database: version.run(database, *COMMAND, "--remove", "--yes"),
    "alembic": lambda version, database: version.run(database, *DOWNGRADE, "base"),
    "django": lambda version, database: version.run(database, "-c", MANAGE, "mailglass_reconcile", "zero"),
    "alembic --sql": lambda version, database: version.psql(database, *DOWNGRADE, f"{NEXT}:base", "--sql"),
}


@pytest.mark.parametrize("way", REMOVED)
def test_each_way_removes_the_objects_of_all_revisions(empty_database_url, next_version, way):
    """Mailglass's tables are as they were, and a migration makes everything again."""
    database = live(empty_database_url)
    before = database.objects()
    next_version.run(database, "-c", MANAGE)
    rows = database.rows()
    REMOVED[way](next_version, database)
    assert lines_of_ours(database.objects()) == set()
    assert before <= database.objects()
    assert database.rows() == rows
    next_version.run(database, *COMMAND)
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {NEXT}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (*DOWNGRADE, VERSION),
        (*DOWNGRADE, "-1"),
        (*DOWNGRADE, f"{NEXT}:{VERSION}", "--sql"),
        ("-m", "alembic", "upgrade", VERSION),
        ("-c", MANAGE, "mailglass_reconcile", VERSION),
    ],
    ids=lambda arguments: " ".join(arguments[1:]).replace(MANAGE, "django"),
)
def test_no_way_leads_back_to_an_older_revision(empty_database_url, next_version, arguments):
    """Triggers of the newer version would name a column that is gone, and stop every writer."""
    database = live(empty_database_url)
    next_version.run(database, "-c", MANAGE)
    before = database.objects()
    with next_version.start(database, *arguments) as process:
        assert process.wait() != 0
        assert "An older version works on the newer schema" in process.output.strip().splitlines()[-1]
    assert database.objects() == before
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {NEXT}\n"
    applied = "SELECT count(*) FROM django_migrations WHERE app = 'mailglass_reconcile'"
    assert database.values(applied) == [2]


def test_a_function_with_other_arguments_is_refused_before_anything_is_changed(empty_database_url):
    """Calls would be ambiguous."""
    database = live(empty_database_url)
    database.run("CREATE FUNCTION mailglass_reconcile_iso_v1(text) RETURNS text LANGUAGE sql AS 'SELECT $1'")
    database.run("CREATE FUNCTION mailglass_reconcile_iso_v1(int) RETURNS text LANGUAGE sql AS 'SELECT $1::text'")
    before = database.objects()
    with pytest.raises(
        Exception,
        match=r"FUNCTION public.mailglass_reconcile_iso_v1\(.* exists with other arguments, owned by postgres",
    ):
        runner.migrate(database.engine, database.settings, lambda line: None)
    assert database.objects() == before
