"""The open orphans and the triggers that keep them; the handlers' outbox; Mailglass's tables, if there are none."""

from alembic import context

from mailglass_reconcile.store import schema, script
from mailglass_reconcile.store.migration import preflight
from mailglass_reconcile.store.migration.steps import Steps
from mailglass_reconcile.store.script import Step

revision = "0001e"
down_revision = None

# Where the default is another one; a GRANT that changes nothing would be missing from a dump.
EXECUTE_BY_ALL = """
DO $$
DECLARE
  made regprocedure;
BEGIN
  FOR made IN SELECT p.oid FROM pg_proc AS p
               WHERE p.pronamespace = '{schema}'::regnamespace AND p.proname LIKE 'mailglass_reconcile_%'
                 AND NOT has_function_privilege('public', p.oid, 'EXECUTE')
  LOOP
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', made);
  END LOOP;
END;
$$;
"""

MADE_HERE = [step for step in script.steps() if step.only == "made here"]
RETENTION = [step for step in MADE_HERE if step.name in schema.RETENTION]
GUARD = [step for step in script.steps() if step.name == schema.GUARD]
TABLES = [step for step in script.steps() if step.name in schema.TABLES]
TRIGGERS = [step for step in script.steps() if step.name in schema.TRIGGERS]
FUNCTIONS = [step for step in script.steps() if step.name in schema.FUNCTIONS]
INDEXES = [name for name, index in schema.INDEXES.items() if index.table not in schema.TABLES]


EARLIER_OUTBOX = "mailglass_hook_outbox"
"""The outbox of earlier checkouts."""


def joined(steps: list[Step]) -> str:
    return "\n\n".join(step.sql for step in steps)


def upgrade() -> None:
    attributes = context.config.attributes
    steps: Steps = attributes["steps"]
    if preflight.require(
        attributes["engine"],
        attributes["settings"],
        columns={
            "mailglass_deliveries": (
                "id tenant_id recipient provider provider_message_id last_event_type last_event_at terminal"
                " dispatched_at delivered_at bounced_at complained_at suppressed_at lock_version updated_at inserted_at"
            ),
            "mailglass_events": (
                "id tenant_id delivery_id type occurred_at idempotency_key normalized_payload metadata"
                " needs_reconciliation inserted_at"
            ),
            "mailglass_webhook_events": "id status inserted_at",
        },
    ):
        steps.run(
            "creating Mailglass's tables (none found);"
            " if Mailglass itself will use this database, run its migrations first",
            joined(MADE_HERE),
        )
    elif not preflight.made_by_mailglass(attributes["engine"], attributes["settings"]):
        steps.run("let the prune delete old events", joined(RETENTION))
    for table in TABLES:
        steps.create_table(table.name, table.sql, columns=table.columns)
    steps.run("put the triggers on mailglass_events", joined(TRIGGERS))
    if attributes["guard"]:
        steps.run("guard mailglass_events against TRUNCATE", joined(GUARD))
    steps.run("make the functions that writers and sweeps share", joined(FUNCTIONS) + EXECUTE_BY_ALL)
    for name in INDEXES:
        steps.create_index(name)
    steps.fill_open_set()


def downgrade() -> None:
    steps: Steps = context.config.attributes["steps"]
    for title, names in (
        ("take the triggers off mailglass_events", [*schema.TRIGGERS, schema.GUARD]),
        ("drop the functions of retention", schema.RETENTION),
        ("drop the functions that writers and sweeps share", schema.FUNCTIONS),
    ):
        steps.run(title, "\n".join(f"DROP FUNCTION IF EXISTS {{schema}}.{name} CASCADE;" for name in names))
    for name in INDEXES:
        steps.drop_index(name)
    tables = [*schema.TABLES, EARLIER_OUTBOX]
    steps.run("drop our tables", "\n".join(f"DROP TABLE IF EXISTS {{schema}}.{name};" for name in tables))
