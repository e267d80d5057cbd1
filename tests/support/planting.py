"""Faults of a running system, and the remedies that the doctor names."""

import itertools
import re
from collections.abc import Callable

import pytest
import redis

import factories
from factories import delivery_row, insert, insert_pairs, orphan_row, postmark
from mailglass_reconcile.testing import servers
from scraping import delivery_of
from system import PATIENCE, System
from waiting import wait_until

FAILED = r"the last full sweep failed \d+ seconds? ago \(\w+\)|no full sweep has succeeded"
LATER = """
UPDATE mailglass_reconcile_runs
   SET started_at = started_at - interval '16 minutes', finished_at = finished_at - interval '16 minutes'
"""
ONE_MORE_TRY = "UPDATE mailglass_handler_outbox SET attempts = 8, next_at = now()::timestamp WHERE state = 'waiting'"


def start(name: str, words: str) -> Callable[[System, str], None]:
    """Return a remedy that starts a process."""

    def step(system: System, remedy: str) -> None:
        assert words in remedy
        system.start(name)

    return step


def run_command(words: str) -> Callable[[System, str], None]:
    """Return a remedy that runs one of our commands as the owner of the tables."""

    def step(system: System, remedy: str) -> None:
        [command] = re.findall(r"`mailglass-reconcile ([^`]+)`", remedy)[:1]
        assert command == words
        result = system.run(*words.split(), MAILGLASS_DATABASE_URL=system.admin.url)
        assert words.startswith("doctor") or result.returncode == 0, result.stderr

    return step


def stop_beat(system: System) -> None:
    """Kill beat and age the history by 16 minutes, by which the doctor judges beat."""
    system.kill("beat")
    system.admin.run(LATER)


def take_redis_away(system: System) -> None:
    """Move Redis to another port, and drop all connections."""
    client = system.site.redis
    client.config_set("port", servers.free_port())
    for kind in ("pubsub", "normal"):
        client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    system.moved = client  # type: ignore[attr-defined]


def bring_redis_back(system: System, remedy: str) -> None:
    """Move Redis back to its port."""
    assert "start the server" in remedy
    port = redis.Redis.from_url(system.site.url).connection_pool.connection_kwargs["port"]
    system.moved.config_set("port", port)  # type: ignore[attr-defined]


def damage_open_set(system: System) -> None:
    """Delete rows from the open set."""
    insert(system.admin, [], [orphan_row(postmark(f"nobody's {n}")) for n in range(9)])
    system.admin.run(
        "DELETE FROM mailglass_open_orphans WHERE event_id IN (SELECT event_id FROM mailglass_open_orphans LIMIT 4)"
    )


def send_from_acme(system: System) -> None:
    """Store a dozen events of a custom provider without a loaded rule, and their deliveries."""
    ids = [factories.new_id() for _ in range(12)]
    rows = [orphan_row({"provider": "acme", "its": {"id": id_}}) for id_ in ids]
    insert(system.admin, [delivery_of(system.admin, id_, 30) for id_ in ids], rows)


def load_acmes_rule(system: System, remedy: str) -> None:
    """Set the rule's module for every process, and restart the worker."""
    assert "MAILGLASS_IMPORTS" in remedy
    system.site.environment["MAILGLASS_IMPORTS"] += ",acmes_rule"
    system.stop_worker()
    system.start("worker")


def send_under_default(system: System) -> None:
    """Store webhooks with the tenant `default`, whose deliveries are another tenant's."""
    ids = [factories.new_id() for _ in range(5)]
    rows = [orphan_row(postmark(id_), tenant_id="default") for id_ in ids]
    insert(system.admin, [delivery_row(id_) for id_ in ids], rows)


def give_tenant(system: System, remedy: str) -> None:
    """Store the webhooks again with their delivery's tenant."""
    assert "record the stored events again" in remedy
    ids = system.admin.rows(
        "SELECT candidate_id FROM mailglass_open_orphans JOIN mailglass_open_orphan_ids USING (event_id)"
        " WHERE tenant_id = 'default'"
    )
    insert(system.admin, [], [orphan_row(postmark(id_)) for (id_,) in ids])


def kill_handler(system: System) -> None:
    """Make a handler's job dead."""
    system.broken_handler.touch()
    insert_pairs(system.admin, 1, type="bounced")
    failed_jobs = "SELECT count(*) FROM mailglass_handler_outbox WHERE error = 'RuntimeError'"
    wait_until(lambda: system.admin.value(failed_jobs), PATIENCE)
    system.admin.run(ONE_MORE_TRY)
    system.run("dispatch")  # unless the worker has run it meanwhile
    dead = "SELECT count(*) FROM mailglass_handler_outbox WHERE state = 'dead'"
    wait_until(lambda: system.admin.value(dead), PATIENCE)


def correct_handler(system: System, remedy: str) -> None:
    """Repair the handler, and retry its job."""
    assert "correct the handler" in remedy
    assert "--retry" in system.run("dispatch", "--help").stdout
    system.broken_handler.unlink()
    assert system.run("dispatch", "--retry").returncode == 0
    assert system.run("dispatch").returncode == 0


def fill_disk(system: System) -> None:
    """Fill the disk before any sweep sees the orphans that it is to link."""
    with system.admin.engine.begin() as connection:
        insert_pairs(connection, 100)
        if system.full is None:  # without a small disk, raise the error of a full one
            connection.exec_driver_sql(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE SQLSTATE '53100' USING MESSAGE = 'full'; END $$"
            )
            connection.exec_driver_sql(
                "CREATE TRIGGER full_disk BEFORE INSERT ON mailglass_events FOR EACH ROW EXECUTE FUNCTION full_disk()"
            )
            return
        with system.full.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            file.writelines(itertools.repeat(b"x" * 65_536))


def make_room(system: System, remedy: str) -> None:
    """Free the disk."""
    assert remedy == "run `mailglass-reconcile sweep`, which says why"
    if system.full is None:
        system.admin.run("DROP FUNCTION full_disk CASCADE")
        return
    assert "make room" in system.run("sweep").stderr
    system.full.unlink()


def revoke_privilege(system: System) -> None:
    """Revoke a privilege that the sweeper's next link needs."""
    system.admin.run("REVOKE INSERT ON mailglass_events FROM mail")
    insert_pairs(system.admin, 1, age_seconds=3_600)
    system.admin.run("UPDATE mailglass_deliveries SET inserted_at = inserted_at - interval '1 hour'")


def run_statements(system: System, remedy: str) -> None:
    """Run the remedy's statement as the owner of the tables."""
    for statement in remedy.split("; "):
        system.admin.run(statement)
