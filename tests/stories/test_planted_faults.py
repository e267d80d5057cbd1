"""Faults planted in a running system, one at a time: the doctor names each at once, `status --check` within its
threshold, and the remedy fixes it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import planting
from factories import insert, orphan_row, postmark
from mailglass_reconcile.ops.checks import ERROR, OK, WARNING
from mailglass_reconcile.store.schema.revision import VERSION
from marking import nightly_unless
from planting import FAILED
from system import PATIENCE, System, running_system
from timeline import Timeline, has_promtool
from waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(600)]

NO_SWEEP = r"no full sweep has succeeded for \d+ seconds \(limit 4 seconds\)"

OF_A_SWEEP = ("sweeps", "tenants", "key_rules")
"""What the next sweep finds first."""

RESTORE_VERSION = f"INSERT INTO mailglass_reconcile_version VALUES ('{VERSION}')"  # noqa: S608
"""The first of two steps that the doctor names: restore the row, or remove and migrate."""


@pytest.fixture
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A running system, which does not know that it is tested; a test that fails leaves its fault to no other."""
    with running_system(tmp_path_factory.mktemp("system")) as running:
        yield running


@dataclass(frozen=True)
class Fault:
    """A fault: how it is caused, what names it, and how its remedy is applied.

    Attributes:
        name: What is wrong.
        plant: Makes it so.
        check: The doctor's check that says so, with these `words`.
        status_pattern: What `status --check` says within its threshold; None if only the doctor can see it.
        alert: Whether Prometheus's rules report it after ten minutes, if promtool is there; never for `NO_SWEEP`.
        heal: Takes the step that the doctor names, which it is given.
    """

    name: str
    plant: Callable[[System], object]
    check: str
    words: str
    status_pattern: str | None
    heal: Callable[[System, str], object]
    alert: bool = True


FAULTS = [
    Fault(
        "no worker",
        System.stop_worker,
        "worker",
        "no Celery worker of the app adopter answers",
        NO_SWEEP,
        planting.start("worker", "start a worker: `celery -A"),
    ),
    Fault(
        "no beat",
        planting.stop_beat,
        "sweeps",
        "no run that beat queued has ended for 16 minutes",
        "no run that beat queued has ended for 16 minutes",
        planting.start("beat", "beat does not run"),
    ),
    Fault(
        "Redis is away", planting.take_redis_away, "redis", "nothing listens there", NO_SWEEP, planting.bring_redis_back
    ),
    Fault(
        "a trigger dropped",
        lambda system: system.admin.run("DROP TRIGGER mailglass_open_orphans_add ON mailglass_events"),
        "triggers",
        "trigger mailglass_open_orphans_add on mailglass_events is missing",
        "trigger mailglass_open_orphans_add on mailglass_events is missing",
        planting.run_command("migrate"),
    ),
    Fault(
        "the open set damaged",
        planting.damage_open_set,
        "open_set",
        "4 of 9 orphans checked are missing",
        None,
        planting.run_command("doctor --repair"),
        alert=False,
    ),
    Fault(
        "a key rule missing",
        planting.send_from_acme,
        "key_rules",
        "of 12 newest open events of the provider acme, none has a usable id",
        "of 12 newest open events of the provider acme, none has a usable id",
        planting.load_acmes_rule,
    ),
    Fault(
        "all webhooks under another tenant",
        planting.send_under_default,
        "tenants",
        "the events' tenant is default",
        "5 newest open events match only another tenant's deliveries",
        planting.give_tenant,
    ),
    Fault(
        "a handler dead",
        planting.kill_handler,
        "handlers",
        "1 job of a handler is dead",
        "1 job of a handler is dead",
        planting.correct_handler,
    ),
    Fault("the disk full", planting.fill_disk, "sweeps", FAILED, FAILED, planting.make_room),
    Fault(
        "the version lost",
        lambda system: system.admin.run("DELETE FROM mailglass_reconcile_version"),
        "schema",
        "the database has no revision",
        "the database has no revision",
        lambda system, remedy: system.admin.run(RESTORE_VERSION),
    ),
    Fault(
        "no right on a table",
        planting.revoke_privilege,
        "privileges",
        "INSERT on mailglass_events",
        "INSERT on mailglass_events",
        planting.run_statements,
    ),
]


@pytest.mark.parametrize(
    "fault",
    nightly_unless(lambda fault: fault in FAULTS[:2], FAULTS),
    ids=[fault.name.replace(" ", "-") for fault in FAULTS],
)
def test_a_fault_is_named_at_once_and_its_remedy_fixes_it(system: System, fault: Fault, tmp_path: Path) -> None:
    """The doctor names it at once; `status --check` and an alert do so within a threshold, unless only the doctor
    sees it.
    """
    timeline = Timeline(system.admin, tmp_path)
    timeline.scrape()
    timeline.scrape()
    fault.plant(system)
    if fault.status_pattern and fault.check in OF_A_SWEEP:
        wait_until(lambda: re.search(fault.status_pattern, system.check_status()), PATIENCE)
    check = fault.check
    result = system.doctor()[check]
    assert (result["status"], bool(re.search(fault.words, result["message"]))) == (ERROR, True), result
    if fault.status_pattern is None:
        assert system.is_healthy()
    else:
        wait_until(lambda: re.search(fault.status_pattern, system.check_status()), PATIENCE)
    # The limits of a scrape are minutes; tests/ops/test_incidents.py plants late sweeps there, too.
    if fault.alert and fault.status_pattern != NO_SWEEP and has_promtool:
        timeline.scrape(12)
        timeline.check_alerts("Finding", perhaps="BroadcastsLost")
    fault.heal(system, result["remedy"])
    wait_until(system.is_healthy, PATIENCE)
    after = system.doctor()
    assert after[check]["status"] == OK or (check == "tenants" and after[check]["status"] == WARNING), after[check]
    assert [row for row in after.values() if row["status"] == ERROR] == []


@pytest.mark.nightly
def test_a_thousand_foreign_events_are_not_called_unhealthy(system: System, tmp_path: Path) -> None:
    """Mail of other software never matches; a full sweep has checked all of it, and no alert fires."""
    timeline = Timeline(system.admin, tmp_path)
    timeline.scrape()
    insert(system.admin, [], [orphan_row(postmark(f"foreign {n}"), age_seconds=80_000) for n in range(1_000)])
    census = "SELECT unmatched FROM mailglass_reconcile_runs WHERE kind = 'full' ORDER BY id DESC LIMIT 1"
    wait_until(lambda: system.admin.value(census) == 1_000, PATIENCE)
    assert system.is_healthy()
    assert [row for row in system.doctor().values() if row["status"] != OK] == []
    for _ in range(6):
        timeline.scrape()
    if has_promtool:
        timeline.check_alerts()
