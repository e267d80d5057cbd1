"""The tables of Mailglass 0.1.1 and 2.x: migrated, swept, and restored by a removal."""

import pytest

import mailglass_reconcile
from catalog import lines_of_ours, live
from factories import delivery, orphan, postmark
from history import DELIVERY, ORPHAN, new_id
from mailglass_reconcile.errors import DatabaseRefusedError
from shapes import SCHEMAS

pytestmark = pytest.mark.slow


def test_an_orphan_of_either_version_is_linked(mailglass_db):
    """Further columns and tables do not matter."""
    delivery(mailglass_db, "m-1")
    orphan(mailglass_db, postmark("m-1"))
    assert mailglass_reconcile.reconcile().linked == 1


def test_a_removal_restores_either_version(empty_database_url, shape):
    """A migration changes nothing of Mailglass's, and a removal leaves nothing of ours."""
    database = live(empty_database_url, SCHEMAS[shape], shape)
    before = database.objects()
    database.migrate()
    assert before <= database.objects()
    assert database.objects() - before == lines_of_ours(database.objects()) - lines_of_ours(before)
    assert database.is_current()
    database.remove()
    assert database.objects() == before


def test_an_index_that_serves_the_prune_is_not_built_twice(empty_database_url):
    """Since 2.5 Mailglass has one with the same first columns; without it, ours is built."""
    database = live(empty_database_url, "mailglass", "2.x")
    database.migrate()
    assert database.is_current()
    assert not any("mailglass_webhook_events_prune_idx" in line for line in database.objects())
    database.run("DROP INDEX mailglass_webhook_events_status_age_id_idx")
    assert not database.is_current()
    database.migrate()
    assert database.is_current()
    assert any("mailglass_webhook_events_prune_idx" in line for line in database.objects())


PARTITIONED = """
ALTER TABLE mailglass_deliveries RENAME TO old;
CREATE TABLE mailglass_deliveries (LIKE old INCLUDING DEFAULTS) PARTITION BY HASH (provider_message_id);
CREATE TABLE half PARTITION OF mailglass_deliveries FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE rest PARTITION OF mailglass_deliveries FOR VALUES WITH (MODULUS 2, REMAINDER 1);
DROP TABLE old;
CREATE INDEX ON mailglass_deliveries (id);
CREATE UNIQUE INDEX mailglass_deliveries_provider_msg_id_idx
  ON mailglass_deliveries (provider, provider_message_id) WHERE provider_message_id IS NOT NULL"""


def test_partitioned_deliveries_get_their_index_manually(empty_database_url):
    """`migrate` stops before it changes anything; with the indexes of its plan, it goes on, and events are linked."""
    database = live(empty_database_url)
    database.run(PARTITIONED)
    before = database.objects()
    with pytest.raises(DatabaseRefusedError, match=r"mailglass_deliveries is partitioned: build the index .* manually"):
        database.migrate()
    assert database.objects() == before
    planned = [line for line in database.migrate(plan=True) if "INDEX CONCURRENTLY mailglass_deliveries" in line]
    assert len(planned) == 2
    for line in planned:
        index, columns = line.removeprefix("CREATE INDEX CONCURRENTLY ").split(' ON "public".mailglass_deliveries ')
        columns = columns.rstrip(";")
        database.run(f"""
            CREATE INDEX {index} ON ONLY mailglass_deliveries {columns};
            CREATE INDEX half_{index} ON half {columns};
            CREATE INDEX rest_{index} ON rest {columns};
            ALTER INDEX {index} ATTACH PARTITION half_{index};
            ALTER INDEX {index} ATTACH PARTITION rest_{index}""")
    database.migrate()
    assert database.is_current()
    database.run(DELIVERY)
    database.run(ORPHAN.format(id=new_id(), age="1 hour"))
    mailglass_reconcile.configure(engine=database.engine, settings=database.settings)
    assert mailglass_reconcile.reconcile().linked == 1
    mailglass_reconcile.configure()
