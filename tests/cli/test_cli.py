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
    result = cli("sweep", "--json")
    counts = json.loads(result.stdout)
    assert (result.returncode, counts["scanned"], counts["linked"], counts["unmatched"]) == (0, 2, 1, 1)
    assert (counts["remaining"], counts["published"], counts["status"]) == (1, 2, "ok")


def test_a_dry_run_writes_nothing(cli, db, one_of_two):
    before = db.value("SELECT count(*) FROM mailglass_events")
    result = cli("sweep", "--dry-run", "--json")
    counts = json.loads(result.stdout)
    assert (counts["linked"], counts["dry_run"], counts["remaining"]) == (1, True, 2)
    assert db.value("SELECT count(*) FROM mailglass_events") == before


def test_ctrl_c_while_libraries_are_imported_exits_with_130_and_no_traceback(tmp_path):
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = processes.run(["-m", "mailglass_reconcile", "sweep"], environment, forked=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


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


def test_prune_prints_what_it_removed_and_mended(cli, db, one_of_two):
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
    assert cli("migrate", "--check").returncode == 0
    db.run("DROP TRIGGER mailglass_open_orphans_add ON mailglass_events")
    assert cli("migrate", "--check").returncode == 1
    assert cli("migrate").returncode == 0
    assert cli("migrate", "--check").returncode == 0
