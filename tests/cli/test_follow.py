"""`follow`: what it links and how soon, what it prints, and how it starts and ends."""

import os
import signal

import pytest
from sqlalchemy import make_url

import processes
from commands import count_linked, follow, sweeps
from factories import insert_pairs
from faults import servers
from handling import handle
from waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.version_independent]


def test_it_links_what_arrives_within_a_second_or_at_the_next_power_of_two_and_ends_cleanly(db):
    """Each sweep that linked is a line of JSON; SIGTERM exits with 0, Ctrl-C with 130, both without output."""
    with follow(db.environment()) as first:
        insert_pairs(db, 1, age_seconds=0)
        wait_until(lambda: count_linked(first) == 1)
        for number in range(2, 5):
            insert_pairs(db, 1, age_seconds=0)
            wait_until(lambda: count_linked(first) == number, 1)  # noqa: B023
        insert_pairs(db, 1, age_seconds=3)  # like missed ticks
        wait_until(lambda: count_linked(first) == 5, 3)
        second_url = (
            make_url(db.url).update_query_dict({"application_name": "second"}).render_as_string(hide_password=False)
        )
        options = ("--tenant", "nobody", "--interval", "0.05")
        with follow({**db.environment(), "MAILGLASS_DATABASE_URL": second_url}, *options) as second:
            wait_until(
                lambda: db.value(f"{CONNECTIONS} AND application_name = 'second'")
            )  # the first process dispatches, too
            assert second.stop(signal.SIGINT) == 130
        assert second.output == ""
    assert all(line["status"] == "ok" and line["linked"] for line in sweeps(first))
    assert first.stderr == ""


CONNECTIONS = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


HANDLER = """
import os
import sqlalchemy as sa
from mailglass_reconcile import on_event

@on_event("delivered")
def slow(connection, event):
    connection.execute(sa.text("SELECT pg_sleep(:seconds)"), {"seconds": float(os.environ["SLOW"])})
    connection.execute(sa.text("INSERT INTO handled VALUES (:id)"), {"id": event.event_id})
"""


WORKING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"


@pytest.fixture
def handled(db, tmp_path):
    """The environment of a process with a handler that stores each event."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "slow_handler.py").write_text(HANDLER)
    handle(db, ("slow_handler.slow", "delivered"))
    db.run("CREATE TABLE handled (event_id uuid)")
    path = os.pathsep.join(filter(None, [str(tmp_path / "modules"), os.environ.get("PYTHONPATH")]))
    handlers = {"MAILGLASS_IMPORTS": "slow_handler", "PYTHONPATH": path}
    return {**db.environment(), **handlers, "SLOW": "0"}


def test_a_slow_handler_does_not_hold_up_linking(db, handled):
    with follow({**handled, "SLOW": "3"}) as first:
        insert_pairs(db, 1, age_seconds=0)
        wait_until(lambda: count_linked(first) == 1)
        wait_until(lambda: db.value(WORKING) == 1, PATIENCE)
        insert_pairs(db, 1, age_seconds=0)
        wait_until(lambda: count_linked(first) == 2, 2)
        wait_until(lambda: db.value("SELECT count(*) FROM handled") == 2)
    assert first.stderr == ""


def test_a_handler_that_works_when_follow_ends_is_let_finish(db, handled):
    """Deployments end it with SIGTERM; the attempt is not lost."""
    with follow({**handled, "SLOW": "2"}) as first:
        insert_pairs(db, 1, age_seconds=0)
        wait_until(lambda: db.value(WORKING) == 1, PATIENCE)
        assert first.stop() == 0
        assert db.value("SELECT count(*) FROM handled") == 1


def test_what_was_waiting_for_its_handler_before_follow_began_is_handled(db, handled):
    """The thread looks for jobs even if nothing new is linked."""
    insert_pairs(db, 1, age_seconds=0)
    with follow({**handled, "MAILGLASS_IMPORTS": ""}) as linking_only:
        wait_until(lambda: count_linked(linking_only) == 1)
    with follow(handled):
        wait_until(lambda: db.value("SELECT count(*) FROM handled") == 1, PATIENCE)


@pytest.mark.parametrize("subcommand", ["follow", "sweep"])
def test_no_module_of_the_working_directory_is_executed(db, handled, tmp_path, subcommand):
    """Otherwise, anybody who can write there could run code in this process."""
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "click.py").write_text("import os\nopen('executed', 'w').close()\nos._exit(3)\n")
    insert_pairs(db, 1, age_seconds=90 if subcommand == "sweep" else 0)
    command = ["-P", "-m", "mailglass_reconcile", subcommand]
    if subcommand == "sweep":
        assert processes.run(command, handled, cwd=planted).returncode == 0
    else:
        with processes.start(command, handled, cwd=planted, exit_code=0):
            wait_until(
                lambda: db.value("SELECT count(*) FROM handled") == 1 or (planted / "executed").exists(), PATIENCE
            )
    assert not (planted / "executed").exists()
    assert db.value("SELECT count(*) FROM handled") == 1


def test_two_at_once_link_everything_once(db):
    with follow(db.environment(), "--interval", "0.02") as first, follow(db.environment()) as second:
        wait_until(lambda: db.value(CONNECTIONS) == 2)
        for _ in range(20):
            insert_pairs(db, 10, age_seconds=0)
        wait_until(lambda: count_linked(first) + count_linked(second) == db.count_links() == 200)


@pytest.mark.skipif(servers.pgbouncer_path() is None, reason="pgbouncer is not installed")
def test_it_works_through_pgbouncer_in_transaction_mode(db):
    """It has one server connection, which others use between two ticks."""
    with servers.pgbouncer(db.url, 1) as url, follow({**db.environment(), "MAILGLASS_DATABASE_URL": url}) as process:
        for number in range(1, 4):
            insert_pairs(db, 5, age_seconds=0)
            wait_until(lambda: count_linked(process) == 5 * number)  # noqa: B023
    assert process.stderr == ""
