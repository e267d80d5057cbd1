"""The tables of Mailglass 0.1.1 and of 2.x: migrated, swept, and given back as they were."""

import pytest

import mailglass_reconcile
from catalog import live, ours
from factories import delivery, orphan, postmark
from history import DELIVERY, ORPHAN, new_id
from shapes import SCHEMAS

pytestmark = pytest.mark.slow


def test_an_orphan_of_either_version_is_linked(beside):
    """Whatever the tables have besides what is needed."""
    delivery(beside, "m-1")
    orphan(beside, postmark("m-1"))
    assert mailglass_reconcile.reconcile().linked == 1


def test_either_version_is_given_back_as_it_was(empty_database_url, shape):
    """Nothing of Mailglass's is changed by a migration, and nothing of ours stays after a removal."""
    database = live(empty_database_url, SCHEMAS[shape], shape)
    before = database.objects()
    database.migrate()
    assert before <= database.objects()
    assert database.objects() - before == ours(database.objects()) - ours(before)
    assert database.is_current()
    database.remove()
    assert database.objects() == before


def test_an_index_that_serves_the_prune_is_not_built_twice(empty_database_url):
    """Since 2.5 Mailglass has one that starts with the same columns; without it, ours is built."""
    database = live(empty_database_url, "mailglass", "2.x")
    database.migrate()
    assert database.is_current()
    assert not any("mailglass_webhook_events_prune_idx" in line for line in database.objects())
    database.run("DROP INDEX mailglass_webhook_events_status_age_id_idx")
    assert not database.is_current()
    database.migrate()
    assert database.is_current()
    assert any("mailglass_webhook_events_prune_idx" in line for line in database.objects())


PARTITIONED = {
    "raw webhooks by time": """
        ALTER TABLE mailglass_webhook_events RENAME TO old;
        CREATE TABLE mailglass_webhook_events (LIKE old) PARTITION BY RANGE (inserted_at);
        CREATE SCHEMA "the parts";
        CREATE TABLE "the parts"."of 2025" PARTITION OF mailglass_webhook_events
          FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY HASH (tenant_id);
        CREATE TABLE "the parts".half PARTITION OF "the parts"."of 2025" FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE "the parts".rest PARTITION OF "the parts"."of 2025" FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        CREATE TABLE other PARTITION OF mailglass_webhook_events DEFAULT;
        DROP TABLE old""",
    "deliveries by message id": """
        ALTER TABLE mailglass_deliveries RENAME TO old;
        CREATE TABLE mailglass_deliveries (LIKE old INCLUDING DEFAULTS) PARTITION BY HASH (provider_message_id);
        CREATE TABLE half PARTITION OF mailglass_deliveries FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE rest PARTITION OF mailglass_deliveries FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        DROP TABLE old;
        CREATE INDEX ON mailglass_deliveries (id);
        CREATE UNIQUE INDEX mailglass_deliveries_provider_msg_id_idx
          ON mailglass_deliveries (provider, provider_message_id) WHERE provider_message_id IS NOT NULL""",
}


@pytest.mark.parametrize("partitioned", PARTITIONED)
@pytest.mark.parametrize("plan", [False, True])
def test_partitioned_tables_get_their_index_partition_by_partition(empty_database_url, redis_url, partitioned, plan):
    """Each built without blocking writers, then attached; a partition that comes later has it from the start."""
    database = live(empty_database_url)
    database.run(PARTITIONED[partitioned])
    before = database.objects()
    if plan:
        assert any("CONCURRENTLY" in line and "rest" in line for line in database.migrate(plan=True))
        assert database.objects() == before
        return
    database.migrate()
    assert database.is_current()
    database.run(DELIVERY)
    database.run(ORPHAN.format(id=new_id(), age="1 hour"))
    mailglass_reconcile.configure(engine=database.engine, settings=database.settings)
    assert mailglass_reconcile.reconcile().linked == 1
    mailglass_reconcile.configure()
    database.remove()
    assert database.objects() == before


def test_an_interrupted_build_on_partitions_goes_on(empty_database_url):
    """With what one partition has already."""
    database = live(empty_database_url)
    database.run(PARTITIONED["raw webhooks by time"])

    def interrupt(line: str) -> None:
        if line.startswith("attach"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        database.migrate(interrupt)
    assert not database.is_current()
    database.migrate()
    assert database.is_current()
