"""Faults planted in a running system, one at a time: the doctor names each at once, `status --check` within its
threshold, and the step that the doctor names heals it."""

import itertools
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

import factories
import mailglass_reconcile
from conftest import Database, wait_until
from factories import delivery_row, insert, orphan_row, postmark
from mailglass_reconcile.ops.doctor.finding import ERROR, OK, WARNING
from mailglass_reconcile.settings import Settings
from mailglass_reconcile.store import database
from mailglass_reconcile.store.migration import runner
from mailglass_reconcile.testing import servers
from mailglass_reconcile.testing.plugin import FAST
from ops.system import PATIENCE, RULE, System
from ops.test_doctor_rights import GRANTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROLES = re.findall(r"```sql\n(.*?)```", GRANTS, re.DOTALL)
NO_SWEEP = r"no full sweep has succeeded for \d+ seconds, 4 seconds are allowed"
FAILED = r"the last full sweep failed \(\w+\)|no full sweep has succeeded"
HELD = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
LATER = """
UPDATE mailglass_reconcile_runs
   SET started_at = started_at - interval '16 minutes', finished_at = finished_at - interval '16 minutes'
"""
ONE_MORE_TRY = "UPDATE mailglass_hook_outbox SET attempts = 8, next_at = now()::timestamp WHERE state = 'waiting'"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A running system on a disk of its own, as the roles of docs/grants.md; nothing in it knows that it is a test."""
    folder = tmp_path_factory.mktemp("system")
    with servers.postgres_server(*FAST) as server, servers.redis() as redis_url, small_disk(server.directory) as disk:
        where = "TABLESPACE small" if disk else ""
        with psycopg.connect(server.url, autocommit=True) as connection:
            if disk:
                connection.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
            connection.execute(f"CREATE DATABASE app TEMPLATE template0 ENCODING utf8 {where}")
            connection.execute("CREATE ROLE mail LOGIN")
        url = server.url.replace("/postgres?", "/app?")
        settings = Settings(database_url=url)
        admin = Database(url, settings, database.create_engine(settings), None)
        runner.migrate(admin.engine, settings, lambda line: None)
        for grants in ROLES:
            if "TO mailglass_sweeper" in grants or "TO mailglass_dispatcher" in grants:
                admin.run(re.sub(r"mailglass_(sweeper|dispatcher)\b", "mail", grants))
        made = System(admin, url.replace("postgres@", "mail@"), redis_url, folder, disk and disk / "filling")
        try:
            yield made
        finally:
            made.close()
            mailglass_reconcile.configure()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a disk of 48 MB for the server of *folder*, if this process may mount anything."""
    disk = folder / "small"
    disk.mkdir()
    options = f"size=48m,mode=0700,uid={folder.stat().st_uid},gid={folder.stat().st_gid}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, check=False
    )
    try:
        yield None if mounted.returncode else disk
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


@dataclass(frozen=True)
class Fault:
    """A fault: how it comes about, what names it, and how the step that is named is taken.

    Attributes:
        name: What is wrong.
        plant: Makes it so.
        check: The doctor's check that says so, with these `words`.
        seen: What `status --check` says within its threshold; None if only the doctor can see it.
        heal: Takes the step that the doctor names, which it is given.
        severity: Of the doctor's finding.
    """

    name: str
    plant: Callable[[System], object]
    check: str
    words: str
    seen: str | None
    heal: Callable[[System, str], object]
    severity: str = ERROR


def pairs(system: System, number: int, *, age_seconds: float = 300, **columns: Any) -> None:
    """Insert orphans that can be linked, and their deliveries."""
    ids = [factories.new_id() for _ in range(number)]
    rows = [orphan_row(postmark(one), age_seconds=age_seconds, **columns) for one in ids]
    insert(system.admin, [delivery_row(one) for one in ids], rows)


def start(name: str, words: str) -> Callable[[System, str], None]:
    """Return a step that starts a process, as the doctor says."""

    def step(system: System, remedy: str) -> None:
        assert words in remedy
        system.start(name)

    return step


def by_command(words: str) -> Callable[[System, str], None]:
    """Return a step that runs a command of ours, as the owner of the tables."""

    def step(system: System, remedy: str) -> None:
        [command] = re.findall(r"`mailglass-reconcile ([^`]+)`", remedy)[:1]
        assert command == words
        done = system.run(*words.split(), MAILGLASS_DATABASE_URL=system.admin.url)
        assert words.startswith("doctor") or done.returncode == 0, done.stderr

    return step


def stop_beat(system: System) -> None:
    """Kill beat, and let 16 minutes pass: nobody can ask beat itself, so the doctor goes by the history."""
    system.kill("beat")
    system.admin.run(LATER)


def take_redis_away(system: System) -> None:
    """Let Redis listen at another port, and drop all connections."""
    client = system.site.redis
    client.config_set("port", servers.free_port())
    for kind in ("pubsub", "normal"):
        client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    system.moved = client  # type: ignore[attr-defined]


def bring_redis_back(system: System, remedy: str) -> None:
    """Let it listen again where it did."""
    assert "start the server" in remedy
    port = redis.Redis.from_url(system.site.url).connection_pool.connection_kwargs["port"]
    system.moved.config_set("port", port)  # type: ignore[attr-defined]


def leave_lock(system: System) -> None:
    """Kill the worker while it sweeps, and start another: nobody frees the lock of the first for a minute."""
    with system.admin.engine.connect() as connection, connection.begin():
        connection.exec_driver_sql("LOCK TABLE mailglass_open_orphans")
        wait_until(lambda: system.admin.value(HELD), PATIENCE)
        os.killpg(system.worker_pid(), signal.SIGKILL)
        system.kill("worker")
    system.start("worker")


def free_lock(system: System, remedy: str) -> None:
    """Delete the key that the doctor names."""
    system.site.redis.delete(remedy.partition("redis-cli DEL ")[2].split()[0])


def damage_open_set(system: System) -> None:
    """Let the table of open orphans lose some."""
    insert(system.admin, [], [orphan_row(postmark(f"nobody's {n}")) for n in range(9)])
    system.admin.run(
        "DELETE FROM mailglass_open_orphans WHERE event_id IN (SELECT event_id FROM mailglass_open_orphans LIMIT 4)"
    )


def send_from_acme(system: System) -> None:
    """Store a dozen events of a provider of one's own, whose rule no process has loaded, and their deliveries."""
    ids = [factories.new_id() for _ in range(12)]
    rows = [orphan_row({"provider": "acme", "its": {"id": one}}) for one in ids]
    insert(system.admin, [delivery_row(one) for one in ids], rows)


def load_acmes_rule(system: System, remedy: str) -> None:
    """Name the module of the rule for every process, and start the worker again."""
    assert "MAILGLASS_IMPORTS" in remedy
    assert "key_rule" in RULE
    system.site.environment["MAILGLASS_IMPORTS"] += ",acmes_rule"
    system.kill("worker")
    system.start("worker")


def send_under_default(system: System) -> None:
    """Store webhooks that all carry the tenant `default`, of deliveries of another tenant."""
    ids = [factories.new_id() for _ in range(5)]
    rows = [orphan_row(postmark(one), tenant_id="default") for one in ids]
    insert(system.admin, [delivery_row(one) for one in ids], rows)


def give_tenant(system: System, remedy: str) -> None:
    """Let the webhooks that come from now on carry their delivery's tenant."""
    assert "resolve_webhook_tenant" in remedy
    pairs(system, 6)


def kill_handler(system: System) -> None:
    """Let a handler fail for the last time."""
    system.broken_handler.touch()
    pairs(system, 1, type="bounced")
    tried = "SELECT count(*) FROM mailglass_hook_outbox WHERE error = 'RuntimeError'"
    wait_until(lambda: system.admin.value(tried), PATIENCE)
    system.admin.run(ONE_MORE_TRY)
    assert system.run("dispatch").returncode == 1


def correct_handler(system: System, remedy: str) -> None:
    """Correct it, and let the event be tried again."""
    assert "correct the handler" in remedy
    assert "--retry" in system.run("dispatch", "--help").stdout
    system.broken_handler.unlink()
    assert system.run("dispatch", "--retry").returncode == 0
    assert system.run("dispatch").returncode == 0


def fill_disk(system: System) -> None:
    """Write until there is no room left, while orphans are about to leave their grace period."""
    pairs(system, 100, age_seconds=55)
    if system.full is None:  # nobody may mount a small disk here: let the server say what it says of a full one
        system.admin.run(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE SQLSTATE '53100' USING MESSAGE = 'full'; END $$"
        )
        system.admin.run(
            "CREATE TRIGGER full_disk BEFORE INSERT ON mailglass_events FOR EACH ROW EXECUTE FUNCTION full_disk()"
        )
        wait_until(lambda: re.search(FAILED, system.says()), PATIENCE)
        return
    with system.full.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(itertools.repeat(b"x" * 65_536))


def make_room(system: System, remedy: str) -> None:
    """Make room."""
    if system.full is None:
        system.admin.run("DROP FUNCTION full_disk CASCADE")
        return
    assert "make room" in remedy
    system.full.unlink()


def take_right(system: System) -> None:
    """Take a right from the sweeper that its next link needs."""
    system.admin.run("REVOKE INSERT ON mailglass_events FROM mail")
    pairs(system, 1)


def by_sql(system: System, remedy: str) -> None:
    """Run the statement that is named, as the owner of the tables."""
    for statement in remedy.split("; "):
        system.admin.run(statement)


MOUNTS = os.geteuid() == 0
FAULTS = [
    Fault(
        "no worker",
        lambda system: system.kill("worker"),
        "worker",
        "no Celery worker of the app adopter answers",
        NO_SWEEP,
        start("worker", "start a worker: `celery -A"),
    ),
    Fault("no beat", stop_beat, "beat", "16 minutes ago, and not since", "no full sweep", start("beat", "start beat")),
    Fault("Redis is away", take_redis_away, "redis", "nothing listens there", NO_SWEEP, bring_redis_back),
    Fault("a lock left behind", leave_lock, "lock", "perhaps its worker was killed", NO_SWEEP, free_lock, WARNING),
    Fault(
        "a trigger dropped",
        lambda system: system.admin.run("DROP TRIGGER mailglass_open_orphans_add ON mailglass_events"),
        "triggers",
        "trigger mailglass_open_orphans_add is missing",
        "the triggers on mailglass_events are missing or disabled",
        by_command("migrate"),
    ),
    Fault(
        "the open set damaged",
        damage_open_set,
        "open_set",
        "4 of 9 orphans looked at are missing",
        None,
        by_command("doctor --repair"),
    ),
    Fault(
        "a key rule missing",
        send_from_acme,
        "key_rules",
        "no key rule knows this provider",
        "none of the 12 open orphans of the provider acme has an id that can be used",
        load_acmes_rule,
    ),
    Fault(
        "all webhooks under another tenant",
        send_under_default,
        "tenants",
        "they carry the tenant default",
        "5 orphans match another tenant's deliveries only",
        give_tenant,
    ),
    Fault(
        "a handler dead",
        kill_handler,
        "handlers",
        "1 event is dead",
        "1 event is dead",
        correct_handler,
    ),
    Fault("the disk full", fill_disk, "disk", "the disk of the database is full", FAILED, make_room),
    Fault(
        "the schema outdated",
        lambda system: system.admin.run("DELETE FROM mailglass_reconcile_version"),
        "schema",
        "this version needs",
        "the database is at revision none",
        by_command("migrate"),
    ),
    Fault("no right on a table", take_right, "rights", "INSERT on mailglass_events", FAILED, by_sql),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_fault_is_named_at_once_and_the_step_that_is_named_heals_it(system: System, fault: Fault) -> None:
    """Each by the doctor; and by `status --check` within its threshold, unless only the doctor can see it."""
    system.reset()
    fault.plant(system)
    # Where nobody may mount a disk that can be filled, the doctor goes by what the last sweep said of it.
    check, words = ("sweeps", "failed") if fault.check == "disk" and system.full is None else (fault.check, fault.words)
    found = system.doctor()[check]
    assert (found["status"], words in found["message"]) == (fault.severity, True), found
    if fault.seen is None:
        assert system.is_healthy()
    else:
        wait_until(lambda: re.search(fault.seen, system.says()), PATIENCE)
    fault.heal(system, found["remedy"])
    wait_until(system.is_healthy, PATIENCE)
    after = system.doctor()
    assert after[check]["status"] == OK or (check == "tenants" and after[check]["status"] == WARNING), after[check]
    assert [one for one in after.values() if one["status"] == ERROR] == []


def test_a_thousand_foreign_events_are_not_called_unhealthy(system: System) -> None:
    """Mail of other software never matches; a full sweep has looked at all of it."""
    system.reset()
    insert(system.admin, [], [orphan_row(postmark(f"foreign {n}"), age_seconds=80_000) for n in range(1_000)])
    census = "SELECT unmatched FROM mailglass_reconcile_runs WHERE kind = 'full' ORDER BY id DESC LIMIT 1"
    wait_until(lambda: system.admin.value(census) == 1_000, PATIENCE)
    assert system.is_healthy()
    assert [one for one in system.doctor().values() if one["status"] != OK] == []
