"""`manage.py migrate` does what `mailglass-reconcile migrate` does, and the command is one of `manage.py`'s."""

import os
import pkgutil
import re
import shlex
import uuid

import pytest
import sqlalchemy as sa
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import override_settings
from sqlalchemy.engine import make_url

import django_script
import pages
import processes
from django_project import databases_name
from mailglass_reconcile import runtime
from mailglass_reconcile.contrib.django import database, migrations
from mailglass_reconcile.contrib.django.apps import LOCAL_NAMES
from mailglass_reconcile.rules import remedy
from mailglass_reconcile.singleton import lock
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.store.schema import revision, script
from revisions import NEXT

pytestmark = [pytest.mark.long, pytest.mark.python_dependent]

APP = "mailglass_reconcile"


@pytest.fixture
def empty(empty_database_url, anymail_django):
    """Let `DATABASES` alone name an empty database."""
    with databases_name(empty_database_url):
        runtime.configure_framework(lambda: database.engine("default"), LOCAL_NAMES)
        yield empty_database_url
        runtime.configure_framework()


def is_current():
    """Return True if the database has all our objects."""
    return not runner.find_missing_objects(runtime.get_engine(), runtime.get_settings())


def test_each_revision_has_a_migration_of_djangos_with_its_name():
    """Otherwise an upgrade of the package would leave Django nothing to apply."""
    revisions = {path.stem for path in (script.find_folder() / "versions").glob("*.py")}
    assert {module.name for module in pkgutil.iter_modules(migrations.__path__)} == revisions
    assert max(revisions).partition("_")[0] == revision.VERSION


@pytest.mark.slow
def test_migrate_makes_our_tables_and_to_zero_removes_what_is_ours(empty):
    """Mailglass's tables keep every row; then both are run again."""
    for _ in range(2):
        call_command("migrate", APP, verbosity=0)
        assert is_current()
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata)"
                " VALUES (gen_random_uuid(), 'acme', 'opened', now(), '{}')"
            )
        call_command("migrate", APP, "zero", verbosity=0)
        assert not is_current()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM mailglass_events")
        assert cursor.fetchone() == (2,)
        cursor.execute("SELECT relname FROM pg_class WHERE relname LIKE 'mailglass_open%%'")
        assert cursor.fetchall() == []


@pytest.mark.slow
def test_zero_is_final_although_djangos_record_has_a_migration_that_this_version_lacks(empty):
    """One of a newer version, or of `squashmigrations`, is left."""
    call_command("migrate", APP, verbosity=0)
    MigrationRecorder(connection).record_applied(APP, "0002_of_another_version")
    for _ in range(2):
        call_command("migrate", APP, "zero", verbosity=0)
        assert _our_tables() == []
    call_command("migrate", APP, verbosity=0)
    assert is_current()


BEAT = """
from django_celery_beat.models import IntervalSchedule, PeriodicTask
tick = IntervalSchedule.objects.create(every=5, period="minutes")
PeriodicTask.objects.create(name="mailglass-reconcile", task="mailglass_reconcile.tasks.reconcile", interval=tick)
PeriodicTask.objects.create(name="own", task="shop.tasks.own", interval=tick)
"""
ENTRIES = "SELECT name FROM django_celery_beat_periodictask"
OF_OURS = """
SELECT relname FROM pg_class WHERE relname ~ '^mailglass'
 UNION ALL SELECT proname FROM pg_proc WHERE proname ~ '^mailglass'
 UNION ALL SELECT app_label FROM django_content_type WHERE app_label ~ '^mailglass'
 UNION ALL SELECT app FROM django_migrations WHERE app ~ '^mailglass'
"""


@pytest.mark.slow
def test_the_page_on_removal_leaves_nothing_of_ours(manage, empty_database_url):
    """That is rows of other apps of Django's, and the function of the ledger's trigger, too."""
    blocks = pages.chapter(pages.ROOT / "docs" / "upgrading.md", "Remove it from Django")
    steps = [line for block in blocks[:-1] for line in pages.commands(block)]
    assert manage("migrate", "-v", "0").returncode == 0
    assert manage("shell", "-c", BEAT).returncode == 0
    for step in steps:
        run_step(manage, step)
    with sa.create_engine(make_url(empty_database_url).set(drivername="postgresql+psycopg")).begin() as driver:
        driver.exec_driver_sql(blocks[-1].text)
        assert driver.exec_driver_sql(OF_OURS).all() == []
        assert driver.exec_driver_sql(ENTRIES).all() == [("own",)]


def run_step(manage, line):
    """Run a line of the page without questions; the last one after the removal."""
    _, arguments = line.split("manage.py ")
    unasked = ["--noinput"] if "stale" in line else []
    result = manage(*shlex.split(arguments), *unasked, **({"REMOVED": "1"} if "stale" in line else {}))
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_an_older_version_warns_of_a_newer_schema_and_ends_no_migrate_of_the_site(empty, caplog):
    """After a rollback of the code, an entrypoint that migrates first starts."""
    call_command("migrate", APP, verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE mailglass_reconcile_version SET version_num = %s", [NEXT])
    call_command("migrate", verbosity=0)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"warning: nothing was changed, because the database is at revision {NEXT}, this version knows"
        f" {revision.VERSION}: install the newer mailglass-reconcile here"
    ]


def test_sqlmigrate_prints_what_the_database_lacks(empty, capsys):
    """The plan of the command, for a person who runs SQL by psql."""
    call_command("sqlmigrate", APP, "0001")
    output = capsys.readouterr().out
    assert "CANNOT BE WRITTEN AS SQL" not in output
    assert 'CREATE TABLE "public".mailglass_open_orphans' in output
    assert "CREATE OR REPLACE TRIGGER mailglass_open_orphans_add" in output
    assert _our_tables() == []


def _our_tables():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relname ~ '^mailglass_(open|reconcile|handle)' AND relkind = 'r'"
        )
        return cursor.fetchall()


@pytest.mark.slow
def test_each_later_migrate_restores_what_was_dropped(empty):
    """This holds although Django has nothing to apply."""
    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER mailglass_open_orphans_add ON mailglass_events")
    assert not is_current()
    call_command("migrate", verbosity=0)
    assert is_current()


@pytest.mark.slow
def test_a_project_without_migrations_gets_the_tables_all_the_same(empty):
    """`pytest --nomigrations` makes one."""
    with override_settings(MIGRATION_MODULES={APP: None}):
        call_command("migrate", run_syncdb=True, verbosity=0)
    assert is_current()


def test_another_database_gets_nothing(empty):
    """`migrate --database=other` skips it."""
    with override_settings(MAILGLASS_DATABASE_ALIAS="elsewhere"):
        call_command("migrate", APP, verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_class WHERE relname LIKE 'mailglass%%'")
        assert cursor.fetchall() == []


def test_what_cannot_be_migrated_is_said_in_one_line(empty):
    """The command prints the same line."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE mailglass_events (id uuid)")
    with pytest.raises(CommandError, match=r"^mailglass_reconcile: .*lacks table mailglass_deliveries.*$"):
        call_command("migrate", APP, verbosity=0)
    assert APP not in {app for app, _ in MigrationRecorder(connection).applied_migrations()}


@pytest.mark.slow
def test_a_refusal_names_the_row_of_a_migration_that_this_version_lacks(empty):
    """An earlier checkout has left it; `migrate --prune` deletes it."""
    call_command("migrate", APP, verbosity=0)
    MigrationRecorder(connection).record_applied(APP, "0001h_open_orphans")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE mailglass_reconcile_version SET version_num = '0001h'")
    with pytest.raises(CommandError, match=r"0001h of an unreleased version.*django_migrations has 0001h_open_orphans"):
        call_command("migrate", verbosity=0)


def test_makemigrations_has_nothing_to_propose(empty):
    """This holds for all models of our tables."""
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


ELSEWHERE = f"""{django_script.SETUP}
call_command("migrate", "mailglass_reconcile", verbosity=0)
call_command("makemigrations", check=True, dry_run=True, verbosity=0)
from mailglass_reconcile.contrib.django.models import OpenOrphan
print(len(OpenOrphan.objects.select_related("event__stored_delivery").filter(event__type="opened")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["environment", "settings.py"])
def test_tables_may_be_in_another_schema(empty_database_url, redis_url, place):
    """The name may have capitals; `makemigrations` proposes nothing there either."""
    with sa.create_engine(
        make_url(empty_database_url).set(drivername="postgresql+psycopg")
    ).begin() as setup_connection:
        setup_connection.exec_driver_sql('CREATE SCHEMA "Mail_Glass"')
    environment, program = {**os.environ, "MAILGLASS_DATABASE_URL": empty_database_url}, ELSEWHERE
    if place == "environment":
        environment["MAILGLASS_DATABASE_SCHEMA"] = "Mail_Glass"
    else:
        program = program.replace("USE_TZ=True,", "USE_TZ=True, MAILGLASS_DATABASE_SCHEMA='Mail_Glass',")
    result = processes.run(["-c", program], environment)
    assert (result.stdout, result.stderr) == ("0\n", "")


def test_each_database_has_a_lock_of_its_own(empty):
    """Two projects on one Redis, or a project and its tests, do not share locks."""
    key = lock.lock_key(None)
    connection.settings_dict["NAME"] += "_other"
    assert lock.lock_key(None) != key
    connection.settings_dict["NAME"] = connection.settings_dict["NAME"].removesuffix("_other")
    assert lock.lock_key(None) == key


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["migrate", "--check"], 1, "the database is not migrated"),
        (["sweep", "--nonsense"], 2, "No such option"),
        (["sweep"], 1, "manage.py mailglass: the database lacks a table, column or function"),
        (["status", "--check"], 1, "run `manage.py mailglass migrate`"),
        (["help"], 0, "Usage: manage.py mailglass"),
        ([], 0, "explain"),
    ],
)
def test_the_command_is_one_of_manage_pys(empty, capsys, arguments, code, words):
    """It has the same exit codes and one-line errors, and uses the database of `DATABASES`."""
    with pytest.raises(SystemExit) as error:
        call_command("mailglass", *arguments)
    assert error.value.code == code
    assert words in "".join(capsys.readouterr())


@pytest.mark.slow
def test_hints_name_the_command_as_a_django_project_has_it(empty, capsys, monkeypatch):
    """Errors, findings, problems and remedies do so."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")  # without a broker, no worker is asked
    with pytest.raises(SystemExit):
        call_command("mailglass", "status")
    call_command("migrate", APP, verbosity=0)
    unknown = str(uuid.uuid4())
    for arguments in (["doctor"], ["status", "--check"], ["dispatch", "--retry", unknown], ["find", "ada@example.com"]):
        with pytest.raises(SystemExit):
            call_command("mailglass", *arguments)
    output = "".join(capsys.readouterr())
    assert "`manage.py mailglass migrate`" in output
    assert "`manage.py mailglass sweep`" in output
    assert "\n  manage.py mailglass find MESSAGE_ID\n" in output
    assert not re.search("[` ]mailglass-reconcile ", output)
    assert "`manage.py mailglass sweep --event" in " ".join(remedy.find_steps(unknown, "unmatched", is_expired=True))


@pytest.mark.slow
def test_databases_of_djangos_tests_are_migrated(empty):
    """`create_test_db` makes one under another name, and our engine connects there."""
    original_name = connection.settings_dict["NAME"]
    name = connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        assert name == f"test_{original_name}"
        assert is_current()
        with runtime.get_engine().connect() as own_connection:
            assert own_connection.exec_driver_sql("SELECT current_database()").scalar_one() == name
    finally:
        connection.creation.destroy_test_db(original_name, verbosity=0)


LOGGED = """
import logging, sys
from django.conf import settings
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
settings.configure(
    USE_TZ=True, LOGGING_CONFIG=None, DATABASES={"default": eval(sys.argv[1])},
    INSTALLED_APPS=["django.contrib.contenttypes", "mailglass_reconcile.contrib.django"],
)
import django
from django.core.management import call_command
django.setup()
call_command("migrate", verbosity=0)
"""


@pytest.mark.slow
def test_a_migrate_with_nothing_to_do_writes_nothing_to_djangos_log(empty):
    """Alembic told of its plugins there, and each `migrate` of the site that ours has nothing to do."""
    names = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")
    database = repr({name: connection.settings_dict[name] for name in names})
    outputs = [processes.run(["-c", LOGGED, database], forked=False) for _ in range(2)]
    assert [output.returncode for output in outputs] == [0, 0], outputs
    assert "done: revision" in outputs[0].stdout
    assert outputs[1].stdout == ""
