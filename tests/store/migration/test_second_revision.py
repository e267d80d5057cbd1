"""A next version with more revisions: they run once, in every way, while writers and the version before go on.

The version before is the last release; until there is one, it is this checkout, frozen. The next version has a column,
the rows that the recipe for revisions fills, an index, a second version of a function, and another trigger.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

import django_script
import processes
from catalog import Installation, client, installation, lines_of_ours, live, url_of
from freezing import ROOT, copy_checkout, freeze
from history import ORPHAN, insert_history, new_id, write_until
from mailglass_reconcile.store.migration import runner
from marking import nightly_unless
from processes import Process
from revisions import HEAD, LATER, NEXT, RECIPE
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slow

LAST_RELEASE = ROOT / "tests" / "support" / "last_release"
COLUMN = f'''"""The region of open orphans."""

import sqlalchemy as sa
from alembic import op

from mailglass_reconcile.store.migration.operations import schema_name

revision = "{NEXT}"
down_revision = "{HEAD}"


def upgrade() -> None:
    op.add_column("mailglass_open_orphans", sa.Column("region", sa.Text()), schema=schema_name())
'''

ROWS = f'''"""The region of the orphans that are open already."""

from alembic import op

from mailglass_reconcile.store.migration.operations import execute

revision = "{LATER}"
down_revision = "{NEXT}"

{RECIPE}'''

INDEX = """
-- step: index mailglass_open_orphans_region_idx
CREATE INDEX mailglass_open_orphans_region_idx ON {schema}.mailglass_open_orphans (region, arrived_at);
"""

FUNCTION = """
-- step: function mailglass_reconcile_credible_v2
CREATE OR REPLACE FUNCTION {schema}.mailglass_reconcile_credible_v2(occurred_at timestamp, arrived_at timestamp)
RETURNS timestamp LANGUAGE sql IMMUTABLE AS $$
SELECT least({schema}.mailglass_reconcile_credible_v1(occurred_at, arrived_at), arrived_at)
$$;
"""

CHANGED = {
    "alembic/schema/open_orphans.sql": {
        "(event_id, tenant_id, arrived_at)\n  VALUES (NEW.id,": "(region, event_id, tenant_id, arrived_at)\n"
        "  VALUES ('eu', NEW.id,",
        "length(NEW.tenant_id) <= 1000": "length(NEW.tenant_id) < 1001",
    },
    "mailglass_reconcile/store/schema/revision.py": {"ids state refused": "ids state refused region"},
}
"""What the next version changes: the trigger and its function, which names the new column."""

DJANGO = """
from django.db import migrations
from mailglass_reconcile.contrib.django import migration_operations

class Migration(migrations.Migration):
    atomic = False
    dependencies = (("mailglass_reconcile", "BEFORE"),)
    operations = (migration_operations.Migrate("ID"),)
"""

RECORDER = """
import datetime, select, sys, uuid
import mailglass_reconcile
from mailglass_reconcile import Sent, WebhookEvent, record_send, record_webhook
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store.engines import create_engine

settings = Settings()
engine = create_engine(settings)
mailglass_reconcile.configure(engine=engine, settings=settings)
while not select.select([sys.stdin], [], [], 0)[0]:
    id, now = str(uuid.uuid4()), datetime.datetime.now(datetime.UTC)
    event = WebhookEvent(type="delivered", occurred_at=now, message_id=id, provider_event_id=id)
    with engine.begin() as connection:
        record_webhook(connection, provider="postmark", events=[event])
    with engine.begin() as connection:
        sent = Sent(recipient="a@example.com", message_id=id)
        [delivery] = record_send(connection, provider="postmark", sent=[sent])
    print(delivery.linked, flush=True)
"""
"""Stores orphans and links each, until its input ends."""

MANAGE = f"""{django_script.SETUP}
call_command("migrate", *sys.argv[1:] or ["mailglass_reconcile"], verbosity=0, interactive=False)
"""


REGION = "SELECT region FROM mailglass_open_orphans WHERE event_id = CAST(:id AS uuid)"
BUILDING = """
SELECT pid FROM pg_stat_activity
 WHERE query LIKE 'CREATE INDEX CONCURRENTLY%region_idx%' AND state = 'active' AND pid <> pg_backend_pid()
"""


class Version:
    """The package of a version in a folder, and its processes."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder, self.redis_url = folder, redis_url
        self.revision = max(path.name[:4] for path in folder.glob("alembic/versions/[0-9]*.py"))
        self._forker = processes.Forker(Path(sys.executable), os.environ, IMPORTED, folder)

    def start(self, database: Installation, *arguments: str, stdin: bool = False) -> AbstractContextManager[Process]:
        """Start a Python with this version on a database."""
        url = database.settings.database_url
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "MAILGLASS_DATABASE_URL": url.get_secret_value() if url else "",
            "MAILGLASS_DATABASE_SCHEMA": database.settings.database_schema,
            "MAILGLASS_REDIS_URL": self.redis_url,
        }
        return processes.start(arguments, environment, cwd=self.folder, forked=self._forker, stdin=stdin)

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
WAYS: dict[str, Callable[[Version, Installation], object]] = {
    **{name: lambda version, database, way=way: version.run(database, *way) for name, way in STARTED.items()},
    "plan": lambda version, database: version.psql(database, *COMMAND, "--plan"),
    "alembic --sql": lambda version, database: version.psql(database, *ALEMBIC, "--sql"),
}


@pytest.fixture(scope="module")
def folder_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last release; until there is one, this checkout, frozen."""
    folder = tmp_path_factory.mktemp("before")
    if LAST_RELEASE.exists():
        archive = subprocess.run(
            ["git", "archive", LAST_RELEASE.read_text().strip()], cwd=ROOT, capture_output=True, check=False
        )
        if archive.returncode:
            pytest.skip(f"this clone does not have the tag {LAST_RELEASE.read_text().strip()}")
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
    else:
        copy_checkout(folder)
        assert freeze(folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def version_before(folder_before: Path, redis_url: str) -> Version:
    """The version before."""
    return Version(folder_before, redis_url)


@pytest.fixture(scope="module")
def next_version(folder_before: Path, tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Version:
    """This checkout, frozen, with what a next version may add and change."""
    source, folder = ROOT if LAST_RELEASE.exists() else folder_before, tmp_path_factory.mktemp("next")
    for name in ("mailglass_reconcile", "alembic"):
        shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "pyproject.toml", folder)
    migrations = folder / "mailglass_reconcile/contrib/django/migrations"
    before = max(path.stem for path in migrations.glob("0*.py"))
    for id_, text in ((NEXT, COLUMN), (LATER, ROWS)):
        (folder / f"alembic/versions/{id_}_region.py").write_text(text)
        (migrations / f"{id_}_region.py").write_text(DJANGO.replace("BEFORE", before).replace("ID", id_))
        before = f"{id_}_region"
    for name, changes in CHANGED.items():
        text = (folder / name).read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (folder / name).write_text(text)
    for name, text in (("open_orphans", INDEX), ("projection", FUNCTION)):
        with (folder / f"alembic/schema/{name}.sql").open("a") as file:
            file.write(text)
    return Version(folder, redis_url)


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
def recorder(version: Version, database: Installation) -> Iterator[Process]:
    """Record and link with a version while the block runs; nothing may fail."""
    with version.start(database, "-c", RECORDER, stdin=True) as process:
        process.wait_for(lambda: process.stdout.count("\n") > 5)
        yield process
        assert process.stop() == 0, process.output
        assert set(process.stdout.split()) == {"1"}


def columns(database: Installation) -> list[str]:
    """Return the columns of the open orphans."""
    return database.values(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'mailglass_open_orphans'::regclass AND attnum > 0"
        " AND NOT attisdropped"
    )


@pytest.mark.parametrize(
    ("way", "schema", "shape"),
    nightly_unless(
        lambda variant: variant in (("command", "Mail_Glass", "2.x"), ("plan", "Mail_Glass", "2.x")),
        [
            ("command", "public", None),
            ("command", "Mail_Glass", "2.x"),
            ("alembic", "Mail_Glass", "2.x"),
            ("django", "public", "0.1.1"),
            ("plan", "Mail_Glass", "2.x"),
            ("alembic --sql", "public", "0.1.1"),
        ],
    ),
)
def test_more_revisions_run_once_while_writers_write(
    empty_database_url, version_before, next_version, way, schema, shape
):
    """Rows stay and are filled, the index is valid, and the version before goes on with the new schema."""
    database = live(empty_database_url, schema, shape) if shape else installation(empty_database_url, schema)
    version_before.run(database, *COMMAND)
    still_open, *_ = insert_history(database)
    writing = _named(database)
    before = database.rows()["mailglass_deliveries"]
    with writers(writing) as written, recorder(version_before, database) as recording:
        count = len(written)
        WAYS[way](next_version, database)
        wait_until(lambda: len(written) > count + 20)
        count = recording.stdout.count("\n")
        recording.wait_for(lambda: recording.stdout.count("\n") > count + 5)
    assert database.values("SELECT version_num FROM mailglass_reconcile_version") == [LATER]
    assert "region" in columns(database)
    assert database.values(
        "SELECT i.indisvalid FROM pg_index AS i WHERE i.indexrelid = 'mailglass_open_orphans_region_idx'::regclass"
    ) == [True]
    functions = "SELECT proname FROM pg_proc WHERE proname LIKE 'mailglass_reconcile_credible%' ORDER BY 1"
    assert database.values(functions) == ["mailglass_reconcile_credible_v1", "mailglass_reconcile_credible_v2"]
    # An orphan that had expired when it came, too.
    assert len(database.open_set()) == len(written) + 2
    assert database.values(REGION, id=still_open) == ["unknown"]
    assert set(before) <= set(database.rows()["mailglass_deliveries"])
    assert f"nothing to do: the database is at revision {LATER}\n" in next_version.run(database, *COMMAND)


def test_the_version_before_goes_on_and_leaves_functions_of_the_newer_one(
    empty_database_url, version_before, next_version
):
    """A container of it migrates first: its older text of a trigger's function would forget the new column."""
    database = installation(empty_database_url)
    next_version.run(database, *COMMAND)
    insert_history(database)
    complete = database.objects()
    for way in (COMMAND, ALEMBIC):
        assert (
            f"warning: nothing was changed, because the database is at revision {LATER}, this version knows"
            f" {version_before.revision}" in version_before.run(database, *way)
        )
    assert version_before.run(database, *COMMAND, "--check") == f"at revision {LATER}\n"
    with version_before.start(database, *COMMAND, "--remove", "--yes") as removing:
        assert removing.wait() == 1
    with recorder(version_before, database):
        pass
    database.run(ORPHAN.format(id=(id_ := new_id()), age="5 minutes"))
    assert database.values(REGION, id=id_) == ["eu"]
    assert '"linked": 2,' in version_before.run(database, "-m", "mailglass_reconcile", "sweep", "--json")
    assert database.objects() == complete


def _named(database: Installation) -> Installation:
    """Return the installation with its schema in the search_path of the URL, for writers."""
    url = make_url(database.settings.database_url.get_secret_value())
    with_path = url.update_query_dict({"options": f'-csearch_path="{database.settings.database_schema}"'})
    return installation(with_path.render_as_string(hide_password=False), database.settings.database_schema)


def test_a_new_database_gets_all_revisions_and_equals_an_upgraded_one(
    empty_database_url, make_database, drop_database, version_before, next_version
):
    """There is one way to the schema."""
    name = f"mgtest_{new_id().replace('-', '')[:12]}"
    try:
        upgraded, new = installation(empty_database_url), installation(make_database(name))
        version_before.run(upgraded, *COMMAND)
        for database in (upgraded, new):
            next_version.run(database, *COMMAND)
        assert new.objects() == upgraded.objects()
        next_version.run(new, "-m", "mailglass_reconcile", "migrate", "--remove", "--tables", "--yes")
        assert not any("mailglass" in line for line in new.objects())
    finally:
        drop_database(name)


WAITING_TO_ALTER = """
SELECT pid FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%region%'
"""


def test_a_transaction_that_holds_the_table_delays_a_revision_and_fails_no_writer(
    empty_database_url, version_before, next_version
):
    """The revision is tried again until it gets its lock within a tenth of a second."""
    database = live(empty_database_url)
    version_before.run(database, *COMMAND)
    with writers(database) as written, ExitStack() as stack:
        with database.writing(ORPHAN.format(id=new_id(), age="1 minute")):
            process = stack.enter_context(next_version.start(database, *COMMAND))
            wait_until(lambda: database.values(WAITING_TO_ALTER) or process.poll() is not None, PATIENCE)
            before = len(written)
            wait_until(lambda: len(written) > before + 50)
            assert process.poll() is None
        assert process.wait() == 0, process.output
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {LATER}\n"


def test_an_interrupted_build_of_the_new_index_is_repeated(empty_database_url, version_before, next_version):
    """The revision is recorded already; the invalid index is named, and built again."""
    database = live(empty_database_url)
    version_before.run(database, *COMMAND)
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
        assert "index mailglass_open_orphans_region_idx is" in check.stdout
    lines = next_version.run(database, *COMMAND)
    assert "mailglass_open_orphans_region_idx concurrently" in lines
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {LATER}\n"


@pytest.mark.parametrize("way", nightly_unless([*STARTED][:1].__contains__, STARTED))
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
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {LATER}\n"


def test_all_ways_at_once_end_well(empty_database_url, next_version):
    """On an empty database, each but the first finds nothing to do."""
    database = installation(empty_database_url)
    with ExitStack() as stack:
        for process in [
            stack.enter_context(next_version.start(database, *way)) for way in (*STARTED.values(), ALEMBIC)
        ]:
            assert process.wait() == 0, process.output
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {LATER}\n"


DOWNGRADE = ("-m", "alembic", "downgrade")
REMOVED: dict[str, Callable[[Version, Installation], object]] = {
    "command": lambda version, database: version.run(database, *COMMAND, "--remove", "--yes"),
    "alembic": lambda version, database: version.run(database, *DOWNGRADE, "base"),
    "django": lambda version, database: version.run(database, "-c", MANAGE, "mailglass_reconcile", "zero"),
    "alembic --sql": lambda version, database: version.psql(database, *DOWNGRADE, f"{LATER}:base", "--sql"),
}


@pytest.mark.parametrize("way", nightly_unless([*REMOVED][:1].__contains__, REMOVED))
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
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {LATER}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (*DOWNGRADE, HEAD),
        (*DOWNGRADE, "-1"),
        (*DOWNGRADE, f"{LATER}:{HEAD}", "--sql"),
        ("-m", "alembic", "upgrade", HEAD),
        ("-c", MANAGE, "mailglass_reconcile", HEAD),
    ],
    ids=lambda arguments: " ".join(arguments[1:]).replace(MANAGE, "django"),
)
def test_no_way_leads_back_to_an_older_revision(empty_database_url, next_version, arguments):
    """Triggers of the newer version would name a column that is gone, and stop every writer."""
    database = live(empty_database_url)
    next_version.run(database, "-c", MANAGE)
    applied = "SELECT count(*) FROM django_migrations WHERE app = 'mailglass_reconcile'"
    before = database.objects(), database.values(applied)
    with next_version.start(database, *arguments) as process:
        assert process.wait() != 0
        assert "An older version works on the newer schema" in process.output.strip().splitlines()[-1]
    assert (database.objects(), database.values(applied)) == before
    assert next_version.run(database, *COMMAND, "--check") == f"at revision {LATER}\n"


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
