"""A break in SQL for each invariant that SQL keeps, with the test that fails.

`make mutation` breaks the Python of rules, sweep, record and projector; I4 and I12 are theirs.
"""

from __future__ import annotations

from typing import NamedTuple


class Break(NamedTuple):
    """A break: in each file, a text that occurs once and its replacement; and the test that catches it."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    test: str


BREAKS = (
    # I1
    Break(
        "a link is appended without ON CONFLICT",
        (
            (
                "alembic/schema/linking.sql",
                "      FROM claimed\n        ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL"
                " DO NOTHING\n",
                "      FROM claimed\n",
            ),
        ),
        "faults/test_hostile_rows.py::test_a_key_that_another_delivery_has_closes_its_orphan",
    ),
    # I2
    Break(
        "an event that was not inserted is projected",
        (
            (
                "alembic/schema/linking.sql",
                "    SELECT * FROM claimed WHERE (id IN (SELECT id FROM appended)) IS TRUE\n",
                "    SELECT * FROM claimed\n",
            ),
        ),
        "faults/test_hostile_rows.py::test_a_key_that_another_delivery_has_closes_its_orphan",
    ),
    # I3
    Break(
        "a prune takes a delivery's old events although its latest one is young",
        (
            (
                "alembic/schema/retention.sql",
                "e.inserted_at >= bound ORDER BY e.occurred_at DESC",
                "false ORDER BY e.occurred_at DESC",
            ),
        ),
        "store/test_retention.py::test_a_delivery_whose_latest_event_is_young_keeps_all_of_them",
    ),
    # I5
    Break(
        "neither the rule nor the claim compares tenants",
        (
            (
                "mailglass_reconcile/rules/matching.py",
                "if delivery.tenant_id == tenant_id:",
                "if True:",
            ),
            (
                "alembic/schema/linking.sql",
                " AND d.tenant_id IS NOT DISTINCT FROM o.tenant_id\n",
                "\n",
            ),
        ),
        "faults/test_hostile_tenants.py::test_orphans_of_hostile_tenants_are_linked_and_published_within_their_own",
    ),
    # I6
    Break(
        "the trigger believes an infinite arrival",
        (
            (
                "alembic/schema/open_orphans.sql",
                " OR NOT isfinite(NEW.inserted_at)\n",
                "\n",
            ),
        ),
        "store/test_open_orphans.py::test_a_row_with_an_impossible_time_arrives_when_it_is_written",
    ),
    # I7
    Break(
        "a final state ends with the next report",
        (
            (
                "alembic/schema/projection.sql",
                "         terminal = d.terminal OR c.terminal,\n",
                "         terminal = c.terminal,\n",
            ),
        ),
        "test_projector.py::test_a_final_type_makes_it_terminal_for_ever",
    ),
    # I8
    Break(
        "two lists are joined pair by pair",
        (
            (
                "alembic/schema/linking.sql",
                "    SELECT * FROM claimed WHERE (id IN (SELECT id FROM appended)) IS TRUE\n",
                "    SELECT * FROM claimed WHERE id IN (SELECT id FROM appended)\n",
            ),
        ),
        "sweep/test_plans.py::test_a_link_is_claimed_and_appended_by_primary_keys",
    ),
    # I9
    Break(
        "a sweep writes a recipient back that was erased meanwhile",
        (
            (
                "mailglass_reconcile/store/stored_keys.py",
                "recipient = CASE WHEN NOT o.recipient_lost THEN coalesce(o.recipient, k.recipient) END,",
                "recipient = coalesce(o.recipient, k.recipient),",
            ),
        ),
        "record/test_erasure.py::test_a_sweep_that_has_read_the_address_before_does_not_write_it_back",
    ),
    # I10
    Break(
        "a lock is waited for without end",
        (
            (
                "mailglass_reconcile/store/database.py",
                '"lock_timeout": str(max(1, lock_timeout_ms))',
                '"lock_timeout": "0"',
            ),
        ),
        "faults/test_faults_resources.py::test_every_statement_of_a_transaction_has_a_lock_timeout_"
        "and_a_statement_timeout",
    ),
    # I11
    Break(
        "a sweep of one tenant counts the orphans of all",
        (
            (
                "mailglass_reconcile/store/window.py",
                "     AND (CAST(:tenant_id AS text) IS NULL OR tenant_id = :tenant_id)\n-- Those that pass",
                "     AND (CAST(:tenant_id AS text) IS NULL OR true)\n-- Those that pass",
            ),
        ),
        "sweep/test_reconciler.py::test_one_tenant_is_swept_alone",
    ),
    # I13
    Break(
        "an event of any type closes an orphan",
        (
            (
                "alembic/schema/open_orphans.sql",
                "  WHEN (NEW.type = 'reconciled'\n        AND current_setting",
                "  WHEN (current_setting",
            ),
        ),
        "store/test_repair.py::test_a_forged_reconciled_event_closes_no_orphan",
    ),
    # I14
    Break(
        "the dispatcher skips a claimed row that another one reads",
        (
            (
                "alembic/schema/handlers.sql",
                " AND o.handler = handler_name\n",
                " AND o.handler = handler_name AND o.event_id = (SELECT x.event_id"
                " FROM {schema}.mailglass_handler_outbox AS x WHERE x.event_id = event"
                " FOR UPDATE SKIP LOCKED)\n",
            ),
        ),
        "handlers/test_dispatcher.py::test_a_dispatcher_waits_for_a_claimed_job_that_another_one_locks_briefly",
    ),
)
