"""The command line as its user meets it: a process, its output, its exit code."""

import json
import os
import uuid
from functools import partial

import pytest

import commands
import processes

pytestmark = pytest.mark.version_independent

ORPHAN = """
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation, inserted_at)
VALUES (CAST(:id AS uuid), :tenant, 'delivered', now() - interval '1 hour',
        jsonb_build_object('provider', 'postmark', 'message_id', CAST(:message AS text)), true,
        now() - interval '50 minutes')
"""
DELIVERY = """
INSERT INTO mailglass_deliveries (id, tenant_id, mailable, stream, recipient, recipient_domain, provider_message_id,
                                  last_event_type, last_event_at, inserted_at, updated_at)
VALUES (gen_random_uuid(), :tenant, 'Welcome', 'transactional', 'ada@example.com', 'example.com', :message,
        'dispatched', now() - interval '1 hour', now(), now())
"""


@pytest.fixture
def cli(db):
    """Run `mailglass-reconcile` on the test's database, and return the finished process."""
    return partial(commands.run_unchecked, db)


@pytest.fixture
def one_of_two(db):
    """Insert two orphans of tenant acme, of which the first can be linked; return both ids."""
    ids = []
    for number in range(2):
        message, event = str(uuid.uuid4()), str(uuid.uuid4())
        db.run(ORPHAN, id=event, tenant="acme", message=message)
        if number == 0:
            db.run(DELIVERY, tenant="acme", message=message)
        ids.append(event)
    return ids


@pytest.mark.slow
def test_sweep_prints_one_json_object_whose_counts_add_up(cli, one_of_two):
    """Programs read one object with fixed fields."""
    result = cli("sweep", "--json")
    counts = json.loads(result.stdout)
    assert (result.returncode, counts["scanned"], counts["linked"], counts["unmatched"]) == (0, 2, 1, 1)
    assert (counts["remaining"], counts["published"], counts["status"]) == (1, 2, "ok")


def test_sweep_tells_a_person_what_stays_open_and_why(cli, one_of_two):
    """The summary has a line for each reason."""
    result = cli("sweep")
    assert "linked 1 of 2 open events" in result.stdout
    assert "1 unmatched: no delivery has a matching id yet" in result.stdout


def test_a_dry_run_writes_nothing(cli, db, one_of_two):
    """It prints what it would link."""
    before = db.value("SELECT count(*) FROM mailglass_events")
    result = cli("sweep", "--dry-run", "--json")
    counts = json.loads(result.stdout)
    assert (counts["linked"], counts["dry_run"], counts["remaining"]) == (1, True, 2)
    assert db.value("SELECT count(*) FROM mailglass_events") == before


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("swep",), 2, "no such command 'swep'; did you mean sweep?"),
        (("nothing",), 2, "no such command 'nothing'"),
        (("--nothing",), 2, "No such option"),
        (("sweep", "--limit", "0"), 2, "Invalid value for '--limit': 0 is not in the range x>=1."),
        (("explain", "--message-id", "m-2"), 1, "no open event and no delivery has this message id"),
        (("dispatch", "--retry", str(uuid.UUID(int=0))), 1, f"no job of event {uuid.UUID(int=0)} is dead or failing"),
        (("dispatch", "--forget", "nothing", "--yes"), 1, "no dispatcher has registered a handler of 'nothing'"),
        (("serve", "--host", "0.0.0.0"), 2, "0.0.0.0 can be reached from other machines"),  # noqa: S104
        (("migrate",), 1, "MAILGLASS_DATABASE_URL is not set; set it to a postgresql:// URL"),
    ],
)
def test_the_last_line_of_every_error_begins_with_the_commands_name(cli, arguments, code, line):
    """The error comes from click, from a subcommand, or from the package."""
    result = cli(*arguments, **({"MAILGLASS_DATABASE_URL": ""} if "MAILGLASS" in line else {}))
    assert result.returncode == code
    assert result.stderr.splitlines()[-1].startswith(f"mailglass-reconcile: {line}")
    assert "Error" not in result.stderr


def test_ctrl_c_while_libraries_are_imported_exits_with_130_and_no_traceback(tmp_path):
    """A signal arrives while click is imported."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = processes.run(["-m", "mailglass_reconcile", "sweep"], environment, forked=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize(
    "arguments",
    [("sweep", "--limit", "0"), ("sweep", "--limit", "x"), ("sweep", "--dry"), ("sweep", "acme"), ("explain", "x")],
)
def test_wrong_usage_exits_with_2_and_sweeps_nothing(cli, db, one_of_two, arguments):
    """Unknown options and bad values are refused first."""
    result = cli(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert db.count_links() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "setting"),
    [
        ({"MAILGLASS_DATABASE_URL": "not-a-url"}, "MAILGLASS_DATABASE_URL"),
        ({"MAILGLASS_DATABASE_URL": ""}, "MAILGLASS_DATABASE_URL"),
        ({"MAILGLASS_DATABASE_URL": "mysql://u:canary@h/d"}, "MAILGLASS_DATABASE_URL"),
        ({"MAILGLASS_DATABASE_URL": "postgresql://u:canary@127.0.0.1:1/d"}, "MAILGLASS_DATABASE_URL"),
        ({"MAILGLASS_REDIS_URL": "http://:canary@x"}, "MAILGLASS_REDIS_URL"),
        ({"MAILGLASS_GRACE_SECONDS": "canary"}, "MAILGLASS_GRACE_SECONDS"),
        ({"MAILGLASS_DATABASE_SCHEMA": "elsewhere"}, "MAILGLASS_DATABASE_SCHEMA"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it_and_exit_code_1(cli, variables, setting):
    """There is no traceback and no value of the setting."""
    result = cli("sweep", **variables)
    assert result.returncode == 1
    assert setting in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "canary" not in result.stderr


@pytest.mark.parametrize("name", ["mail glass", 'mail"glass', "mail-glass", "p%s:x"])
def test_a_schema_s_name_has_letters_digits_and_underscores_only(cli, name):
    """Any other name is a usage error in one line."""
    result = cli("status", MAILGLASS_DATABASE_SCHEMA=name)
    assert (result.returncode, len(result.stderr.strip().splitlines())) == (2, 1)
    assert (
        "MAILGLASS_DATABASE_SCHEMA: use a schema whose name has only letters, digits and underscores" in result.stderr
    )


@pytest.mark.slow
def test_status_counts_open_orphans_by_state_tenant_and_provider(cli, one_of_two):
    """Orphans that no sweep has checked come first, and then those without a delivery."""

    def groups():
        result = json.loads(cli("status", "--json").stdout)["groups"]
        return {(g["state"], g["tenant_id"], g["provider"]): g["orphans"] for g in result}

    assert groups() == {("unseen", "acme", None): 2}
    cli("sweep")
    assert groups() == {("unmatched", "acme", "postmark"): 1}
    assert "unmatched" in cli("status").stdout
    assert "full, acme" not in cli("status").stdout
    cli("sweep", "--tenant", "acme")
    assert "full, acme" in cli("status").stdout, "of which tenant a run was"


@pytest.mark.slow
def test_explain_says_the_ids_tried_the_deliveries_named_and_why(cli, one_of_two):
    linkable, unmatched = one_of_two
    document = json.loads(cli("explain", linkable, "--json").stdout)
    assert document["state"] == "matched"
    assert document["candidates"][0]["candidate_id"] in document["candidate_ids"]
    assert "no delivery has a matching id yet" in cli("explain", unmatched).stdout
    cli("sweep")
    assert json.loads(cli("explain", linkable, "--json").stdout)["state"] == "linked"


@pytest.mark.slow
def test_explain_of_an_unknown_event_exits_with_1(cli):
    """The output says that the ledger has no such event."""
    result = cli("explain", str(uuid.uuid4()))
    assert result.returncode == 1
    assert "no event in the ledger has this id" in result.stdout


def test_prune_prints_what_it_removed_and_mended(cli, db, one_of_two):
    """A row that the open set had lost is restored."""
    db.run("DELETE FROM mailglass_open_orphans")
    assert json.loads(cli("prune", "--json").stdout)["added"] == 2


def test_a_prune_whose_step_fails_exits_with_1_and_prints_the_counts_of_the_others(cli, db, one_of_two):
    """The reason is one line on stderr, with or without --json."""
    db.run("DELETE FROM mailglass_open_orphans")
    db.run("ALTER TABLE mailglass_handler_outbox RENAME COLUMN finished_at TO ended_at")
    result = cli("prune", "--json")
    db.run("ALTER TABLE mailglass_handler_outbox RENAME COLUMN ended_at TO finished_at")
    printed = json.loads(result.stdout)
    assert (result.returncode, printed["status"], printed["added"]) == (1, "partial", 2)
    assert set(printed["failures"]) == {"jobs_done", "jobs_dead"}
    assert len(result.stderr.splitlines()) == 1
    assert "prune: steps jobs_done, jobs_dead failed, and the others ran: the database lacks" in result.stderr


@pytest.mark.slow
def test_migrate_check_says_whether_it_is_done(cli, db):
    """The exit code is 0 where nothing is left to do, else 1."""
    assert cli("migrate", "--check").returncode == 0
    db.run("DROP TRIGGER mailglass_open_orphans_add ON mailglass_events")
    assert cli("migrate", "--check").returncode == 1
    assert cli("migrate").returncode == 0
    assert cli("migrate", "--check").returncode == 0
