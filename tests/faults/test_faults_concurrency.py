"""Sweeps beside sweeps, beside writers with optimistic locks, and beside a reconciler that appends one by one."""

import json
import random
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import sqlalchemy as sa

import factories
import mailglass_reconcile
from database import Database
from faults.works import Killable, killable_process
from marking import nightly_unless

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.version_independent, pytest.mark.timeout(1_500)]

PROCESSES = 8
GROUP = 10
"""Seeds that share a database."""

TYPES = ("delivered", "opened", "bounced", "deferred", "complained", "dispatched", "zap")


@pytest.fixture
def sweepers(db: Database, redis_url: str) -> Iterator[list[Killable]]:
    """Eight processes that sweep on request, without any lock."""
    with ExitStack() as stack:
        yield [stack.enter_context(killable_process(db, redis_url, "sweep")) for _ in range(PROCESSES)]


def crowd(db: Database, draw: random.Random, orphans: int) -> list[str]:
    """Insert orphans, several of one delivery, and return the deliveries' message ids."""
    texts = [uuid.UUID(int=draw.getrandbits(128)).hex for _ in range(max(1, orphans // draw.randint(1, 4)))]
    events = [
        factories.orphan_row(
            factories.postmark(draw.choice(texts)), type=draw.choice(TYPES), age_seconds=draw.randint(70, 9_000)
        )
        for _ in range(orphans)
    ]
    factories.insert(db, deliveries=[factories.delivery_row(text) for text in texts], events=events)
    return texts


FEW = (0, 2, 200)
SEEDS = [FEW, *((first, GROUP, 1_000) for first in range(0, 100, GROUP))]
"""`(first seed, seeds, orphans)` for each database."""


@pytest.mark.parametrize(("first", "number", "orphans"), nightly_unless(FEW.__eq__, SEEDS))
def test_eight_processes_without_a_lock_link_each_orphan_once(
    db: Database,
    sweepers: list[Killable],
    first: int,
    number: int,
    orphans: int,
) -> None:
    for seed in range(first, first + number):
        draw = random.Random(seed)
        crowd(db, draw, orphans)
        before = db.count_links()
        for process in sweepers:
            process.begin(MAILGLASS_BATCH_SIZE=draw.choice((1, 3, 10, 50, 200)))
        results = [json.loads(line) for process in sweepers for line in process.end()[1]]
        linked = sum(result["linked"] for result in results)
        assert [result["status"] for result in results] == ["ok"] * PROCESSES, seed
        assert linked == db.count_links() - before, seed
        assert sum(result["published"] for result in results) == 2 * linked
        assert linked + mailglass_reconcile.reconcile().linked == orphans, seed


@pytest.mark.parametrize("rounds", nightly_unless((1).__eq__, [1, 20]))
def test_writers_with_optimistic_locks_lose_no_update_beside_sweeps(db: Database, rounds: int) -> None:
    """A writer's update fails on a stale version and is retried; each one that succeeded is still there."""
    for seed in range(rounds):
        draw = random.Random(seed)
        texts = crowd(db, draw, 100)
        settings = db.settings.model_copy(update={"batch_size": draw.choice((1, 5, 50))})
        mailglass_reconcile.configure(engine=db.engine, settings=settings)
        writers = [
            threading.Thread(target=_write_optimistically, args=(db, texts, f"w{n}", draw.random())) for n in range(3)
        ]
        for writer in writers:
            writer.start()
        linked = mailglass_reconcile.reconcile().linked + mailglass_reconcile.reconcile().linked
        for writer in writers:
            writer.join()
        assert linked + mailglass_reconcile.reconcile().linked == 100
        marks = db.rows(
            "SELECT metadata FROM mailglass_deliveries WHERE provider_message_id = ANY (:texts)", texts=texts
        )
        assert all(row.metadata == {"w0": 1, "w1": 1, "w2": 1} for row in marks)


def _write_optimistically(db: Database, texts: list[str], mark: str, seed: float) -> None:
    """Add a mark to each delivery, like an application that reads a row and writes it back whole."""
    order = random.Random(seed).sample(texts, len(texts))
    with db.engine.connect() as connection:
        for text in order:
            rowcount = 0
            while not rowcount:
                row = connection.execute(
                    sa.text(
                        "SELECT id, lock_version, metadata FROM mailglass_deliveries WHERE provider_message_id = :t"
                    ),
                    {"t": text},
                ).one()
                connection.commit()
                rowcount = connection.execute(
                    sa.text(
                        "UPDATE mailglass_deliveries SET metadata = CAST(:metadata AS jsonb),"
                        " lock_version = lock_version + 1 WHERE id = :id AND lock_version = :version"
                    ),
                    {"id": row.id, "version": row.lock_version, "metadata": json.dumps({**row.metadata, mark: 1})},
                ).rowcount
                connection.commit()


@pytest.mark.parametrize("rounds", nightly_unless((3).__eq__, [3, 30]))
def test_another_reconciler_that_appends_one_by_one_shares_the_orphans_with_a_sweep(db: Database, rounds: int) -> None:
    """In the end each orphan has one `reconciled` event, whoever appended it, and only ours are counted."""
    for seed in range(rounds):
        draw = random.Random(seed)
        crowd(db, draw, 100)
        before = db.count_links()
        settings = db.settings.model_copy(update={"batch_size": draw.choice((1, 5, 50))})
        mailglass_reconcile.configure(engine=db.engine, settings=settings)
        appended: list[str] = []
        reconciler = threading.Thread(target=_append_one_by_one, args=(db, seed, appended))
        reconciler.start()
        linked = mailglass_reconcile.reconcile().linked
        reconciler.join()
        linked += mailglass_reconcile.reconcile().linked
        assert linked + len(appended) == db.count_links() - before == 100


def _append_one_by_one(db: Database, seed: int, appended: list[str]) -> None:
    statement = sa.text(
        "INSERT INTO mailglass_events (id, tenant_id, delivery_id, type, occurred_at, idempotency_key, metadata)"
        " SELECT gen_random_uuid(), e.tenant_id, d.id, 'reconciled', now(), 'reconciled:' || e.id,"
        "        jsonb_build_object('reconciled_from_event_id', e.id)"
        "   FROM mailglass_events AS e"
        "   JOIN mailglass_deliveries AS d ON d.provider_message_id = e.metadata ->> 'message_id'"
        "  WHERE e.id = CAST(:id AS uuid)"
        "     ON CONFLICT (idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING RETURNING id::text"
    )
    ids = [row.id for row in db.rows("SELECT event_id::text AS id FROM mailglass_open_orphans")]
    with db.engine.connect() as connection:
        for id_ in random.Random(seed).sample(ids, len(ids)):
            appended += connection.execute(statement, {"id": id_}).scalars()
            connection.commit()
