"""The example applications, and other libraries of an adopter's application."""

import json
import sysconfig
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import catalog
import mailglass_reconcile
import processes
from mailglass_reconcile.schedule import SWEEP_TASK
from mailglass_reconcile.store.installed import OUR_OBJECTS
from processes import COMMAND
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.version_independent]


def test_redbeat_runs_our_entry(site, tmp_path):
    """The schedule is in Redis, with an interval of a second here."""
    site.add(1)
    (tmp_path / "red.py").write_text("from worker import *\napp.conf.redbeat_redis_url = redis_url\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{site.environment['PYTHONPATH']}", "WORKER_SWEEP_SECONDS": "1"}
    with (
        site.worker(app="red", pool="solo", **environment),
        site.celery(
            "beat",
            "-l",
            "info",
            "-S",
            "redbeat.RedBeatScheduler",
            "--pidfile=",
            app="red",
            until="beat: St",
            **environment,
        ),
    ):
        wait_until(lambda: site.count_links() == 1, PATIENCE)


@pytest.mark.guard
def test_autogenerate_does_not_propose_to_drop_our_objects(db):
    """An adopter's metadata has the three Mailglass tables with Mailglass's indexes, and none of ours."""
    metadata = sa.MetaData()
    with db.engine.connect() as connection:
        metadata.reflect(connection, only=lambda name, _: name.startswith("mailglass_") and name not in OUR_OBJECTS)
        for table in metadata.tables.values():
            table.indexes = {index for index in table.indexes if index.name in catalog.MAILGLASS}
        without_filter = compare_metadata(MigrationContext.configure(connection), metadata)
        options = {"include_object": mailglass_reconcile.include_object}
        proposed = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    assert {change[0] for change in without_filter} >= {"remove_table"}
    assert proposed == []


@pytest.mark.guard
def test_autogenerate_does_not_propose_to_drop_the_tables_that_migrate_made(db):
    """An adopter without Mailglass has a table in its metadata, and none of `mailglass_…`."""
    own = sa.MetaData()
    sa.Table("orders", own, sa.Column("id", sa.Integer, primary_key=True))
    options = {"include_object": mailglass_reconcile.include_object}
    with db.engine.connect() as connection:
        proposed = compare_metadata(MigrationContext.configure(connection, opts=options), own)
    assert [(change[0], change[1].name) for change in proposed] == [("add_table", "orders")]


@pytest.mark.guard
def test_the_schedule_merges_and_leaves_the_adopters_entries_alone():
    """It is a new dict each time, with an expiry, and a queue on request."""
    first, second = mailglass_reconcile.make_beat_schedule(), mailglass_reconcile.make_beat_schedule(queue="mail")
    first["mailglass-reconcile"]["options"]["expires"] = 1
    assert second["mailglass-reconcile"]["options"] == {
        "expires": 300,
        "queue": "mail",
        "headers": {"mailglass_origin": "beat"},
    }
    assert second["mailglass-reconcile"]["task"] == SWEEP_TASK
    own_entries = {"own": {"task": "own", "schedule": 1.0}}
    assert list({**own_entries, **mailglass_reconcile.beat_schedule}) == ["own", *second]


@pytest.fixture(scope="module")
def without_celery(tmp_path_factory) -> Path:
    """A folder with all packages that are installed here, except Celery."""
    folder = tmp_path_factory.mktemp("without-celery")
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        if not installed.name.startswith(("celery", "kombu", "billiard", "django", "redbeat", "__pycache__")):
            (folder / installed.name).symlink_to(installed)
    package = Path(mailglass_reconcile.__file__).parent
    if not (folder / package.name).exists():
        (folder / package.name).symlink_to(package)
    return folder


WITHOUT_CELERY = """
import logging, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
import mailglass_reconcile
print(mailglass_reconcile.available())
for _ in range(2):
    from mailglass_reconcile import beat_schedule
    try:
        import mailglass_reconcile.tasks
    except ImportError as error:
        print(f"{type(error).__name__}: {error}")
print(beat_schedule, mailglass_reconcile.make_beat_schedule(), mailglass_reconcile.reconcile().status)
"""


def test_without_celery_there_is_one_warning_and_the_rest_works(db, redis_url, without_celery):
    """Importing the schedule and the tasks twice logs one warning with the commands, which work."""
    environment = {**db.environment(redis_url), "PYTHONPATH": str(without_celery)}
    printed = processes.run(["-S", "-c", WITHOUT_CELERY], environment).stdout.splitlines()
    assert printed[0] == "False"
    assert "`mailglass-reconcile sweep`" in printed[1]
    assert "`mailglass-reconcile prune`" in printed[1]
    assert [line.split(" needs ")[0] for line in printed[2:4]] == ["ImportError: mailglass_reconcile.tasks"] * 2
    assert printed[4:] == ["{} {} ok"]
    swept = processes.run(["-S", *COMMAND, "sweep", "--json"], environment)
    assert json.loads(swept.stdout)["status"] == "ok"
