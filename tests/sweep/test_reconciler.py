"""Sweeps on real rows: what is linked, what is not and why, and what is published."""

import gc
import json
import threading
import uuid
from collections import Counter

import pytest
import redis
import sqlalchemy as sa

import factories
import mailglass_reconcile
import sweeping
from factories import delivery_row, insert, insert_pairs, orphan_row, postmark, reconciled_row, sendgrid
from faults.redis_servers import silent
from mailglass_reconcile import events_channel, reconcile, runtime
from mailglass_reconcile.pubsub.publisher import Publisher
from mailglass_reconcile.store import database as databases
from mailglass_reconcile.store import engines
from mailglass_reconcile.store.tables import ledger
from mailglass_reconcile.sweep import reconciler
from mailglass_reconcile.sweep.reconciler import Sweep
from mailglass_reconcile.testing.servers import free_port
from meter import statements
from waiting import PATIENCE, wait_until

GUID = "883953f4-6105-42a2-a16a-{:012d}"


def configure(db, **changes):
    """Configure the test's database with other settings, and return them."""
    settings = db.settings.model_copy(update=changes)
    mailglass_reconcile.configure(engine=db.engine, settings=settings)
    return settings


def counts(result):
    """Return the states of a result that are not zero."""
    return {state: n for state in mailglass_reconcile.rules.states.OUTCOMES if (n := getattr(result, state))}


def test_one_sweep_links_exactly_the_matchable_half(db):
    """Of a thousand orphans of six kinds, a second sweep links none, publishes nothing, and sends few statements."""
    deliveries = [delivery_row(GUID.format(n), tenant_id="t1") for n in range(250)]
    deliveries += [delivery_row(f"{n:022d}", tenant_id="t2") for n in range(125)]
    deliveries += [delivery_row("twins", provider=p, tenant_id="t1") for p in (None, None)]
    orphans = [orphan_row(postmark(GUID.format(n).upper()), tenant_id="t1") for n in range(250)]
    orphans += [orphan_row(postmark(GUID.format(n)), tenant_id="t1", type="opened") for n in range(125)]
    orphans += [orphan_row(sendgrid(f"{n:022d}.filter0361p1las1-1-5-2.0"), tenant_id="t2") for n in range(125)]
    matchable = {row["id"] for row in orphans}
    orphans += [orphan_row(postmark(f"never sent {n}"), tenant_id="t1") for n in range(200)]
    orphans += [orphan_row(sendgrid(None), tenant_id="t2") for n in range(100)]
    orphans += [orphan_row(postmark("twins"), tenant_id="t1") for n in range(100)]
    orphans += [orphan_row(postmark(GUID.format(n)), tenant_id="default") for n in range(50)]
    orphans += [orphan_row(postmark(GUID.format(n), recipient="b@example.com"), tenant_id="t1") for n in range(50)]
    insert(db, deliveries, orphans)
    first = reconcile()
    assert counts(first) == {
        "linked": 500,
        "unmatched": 200,
        "unmatchable": 100,
        "ambiguous": 100,
        "tenant_mismatch": 50,
        "recipient_mismatch": 50,
    }
    assert (first.status, first.published, first.remaining) == ("ok", 1000, 500)
    linked = db.rows("SELECT metadata ->> 'reconciled_from_event_id' FROM mailglass_events WHERE type = 'reconciled'")
    assert {row[0] for row in linked} == matchable
    with statements(db.engine) as sent:
        second = reconcile()
    assert counts(second) == {state: n for state, n in counts(first).items() if state != "linked"}
    assert (second.published, second.scanned) == (0, 500)
    assert len(sent) <= 15, sent


def test_orphans_that_never_match_hold_nobody_up(db):
    """1,500 older orphans never match; the first sweep links the newest one, even with a limit of one."""
    dead = [orphan_row(postmark(f"never {n}"), age_seconds=4_000) for n in range(1_500)]
    insert(db, [delivery_row("one")], [*dead, orphan_row(postmark("one"))])
    assert counts(reconcile(limit=1)) == {"linked": 1, "unmatched": 1_500}


def find_linked_delivery(db, orphan):
    """Return the delivery that an orphan is linked to."""
    key = f"reconciled:{orphan}"
    return db.value("SELECT delivery_id::text FROM mailglass_events WHERE idempotency_key = :key", key=key)


def test_a_delivery_of_the_events_provider_is_preferred_to_one_without(db):
    """Both carry the id; a delivery without a provider counts only if none has the event's provider."""
    factories.delivery(db, "one")
    factories.delivery(db, "one", provider="sendgrid")
    delivery = factories.delivery(db, "one", provider="postmark")
    orphan = factories.orphan(db, postmark("one", recipient="ada@example.com"))
    factories.orphan(db, postmark("one"))
    assert counts(reconcile()) == {"linked": 1, "ambiguous": 1}, "without a recipient, both may be meant"
    assert find_linked_delivery(db, orphan) == delivery


def test_the_first_candidate_that_names_a_delivery_decides(db):
    """The event is ambiguous, although a later candidate would be unique."""
    insert(db, [delivery_row("first"), delivery_row("first"), delivery_row("second")])
    factories.orphan(db, postmark("second", provider_message_id="first"))
    assert counts(reconcile()) == {"ambiguous": 1}


def test_a_candidate_that_names_nothing_is_passed_over(db):
    """The second candidate decides."""
    delivery = factories.delivery(db, "second")
    orphan = factories.orphan(db, postmark("second", provider_message_id="first"))
    assert reconcile().linked == 1
    assert find_linked_delivery(db, orphan) == delivery


@pytest.mark.parametrize("key", ["recipient", "email"])
def test_the_recipient_decides_between_deliveries_of_one_message(db, key):
    """Case and surrounding white space do not matter."""
    deliveries = [delivery_row("one", recipient=f"{name}@Example.com") for name in ("ada", "bob", "cy")]
    insert(db, deliveries)
    orphan = factories.orphan(db, postmark("one", **{key: " BOB@example.COM "}))
    assert reconcile().linked == 1
    assert find_linked_delivery(db, orphan) == deliveries[1]["id"]


def test_two_deliveries_of_one_recipient_stay_ambiguous(db):
    """A sweep never takes the first of several."""
    insert(db, [delivery_row("one"), delivery_row("one")])
    factories.orphan(db, postmark("one", recipient=factories.RECIPIENT))
    assert counts(reconcile()) == {"ambiguous": 1}


def test_another_tenants_delivery_is_never_linked(db):
    """This holds with and without a delivery of the orphan's own tenant."""
    insert(db, [delivery_row("one", tenant_id="b"), delivery_row("two", tenant_id="b"), delivery_row("two")])
    insert(db, events=[orphan_row(postmark("one")), orphan_row(postmark("two"))])
    assert counts(reconcile()) == {"linked": 1, "tenant_mismatch": 1}


def test_one_tenant_is_swept_alone(db):
    insert(db, [delivery_row(name, tenant_id=name) for name in ("a", "b", "c")])
    insert(db, events=[orphan_row(postmark(name), tenant_id=name) for name in ("a", "b", "c")])
    result = reconcile(tenant_id="b")
    assert (result.scanned, result.linked, result.tenant_id) == (1, 1, "b")
    assert db.rows("SELECT tenant_id FROM mailglass_events WHERE type = 'reconciled'") == [("b",)]
    assert counts(reconcile(tenant_id="nobody")) == {}


def test_a_limit_bounds_what_is_linked_the_newest_first(db):
    """The rest is skipped and remains open."""
    insert(db, [delivery_row(str(n)) for n in range(5)])
    rows = [orphan_row(postmark(str(n)), age_seconds=100 + n) for n in range(5)]
    insert(db, events=rows)
    result = reconcile(limit=2)
    assert (counts(result), result.remaining, result.status) == ({"linked": 2, "skipped": 3}, 3, "ok")
    still_open = {row[0] for row in db.rows("SELECT event_id::text FROM mailglass_open_orphans")}
    assert still_open == {row["id"] for row in rows[2:]}


def test_events_of_one_delivery_are_linked_in_one_batch(db):
    """Events of another delivery arrived between them; one batch projects them together."""
    events = [orphan_row(postmark(id_), age_seconds=500 - n) for n, id_ in enumerate("abab")]
    insert(db, [delivery_row("a"), delivery_row("b")], events)
    configure(db, batch_size=2)
    batches = [{delivery_id for _, delivery_id in pairs} for pairs in reconciler.prepare().batches() if pairs]
    assert [len(deliveries) for deliveries in batches] == [1, 1]


def test_matching_ends_at_the_limit(db, set_limits):
    set_limits(slice_orphans=40)
    never = [orphan_row(postmark(f"never {number}"), age_seconds=4_000) for number in range(60)]
    insert(db, [delivery_row(id_) for id_ in "ab"], [*never, *(orphan_row(postmark(id_)) for id_ in "ab")])
    result = reconcile(limit=2)
    assert (result.linked, result.skipped_limit, result.remaining, result.status) == (2, 22, 60, "ok")
    assert db.value("SELECT covered FROM mailglass_reconcile_runs") is False
    assert db.value("SELECT count(*) FROM mailglass_open_orphans WHERE state IS NOT NULL") == result.unmatched < 50


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(db, limit):
    """Nothing is swept."""
    with pytest.raises(ValueError, match="at least 1"):
        reconcile(limit=limit)
    assert db.value("SELECT count(*) FROM mailglass_events") == 0


def test_a_dry_run_writes_nothing(db):
    """It counts what it would link and why it would not link the rest, and changes no row of any table."""
    insert(db, [delivery_row("one")], [orphan_row(postmark("one")), orphan_row(postmark("two"))])
    tables = "events", "deliveries", "open_orphans"

    def state():
        query = "SELECT t::text, xmin::text, xmax::text FROM mailglass_{} AS t"
        return [db.rows(query.format(table)) for table in tables]

    before = state()
    result = reconciler.prepare(dry_run=True).run()
    assert counts(result) == {"linked": 1, "unmatched": 1}
    assert (result.published, result.dry_run) == (0, True)
    assert state() == before
    assert db.witness.messages() == []


def test_a_deadline_ends_a_sweep_with_what_it_has(db):
    """The result says partial; the next sweep continues."""
    insert_pairs(db, [str(n) for n in range(3)])
    configure(db, batch_size=1, sweep_seconds=1)

    def pass_the_deadline(result):
        if result.linked:
            sweep.stop()

    sweep = reconciler.prepare()
    result = sweeping.run(sweep, pass_the_deadline)
    assert (counts(result), result.status, result.remaining) == ({"linked": 1, "skipped": 2}, "partial", 2)
    configure(db)
    assert counts(reconcile()) == {"linked": 2}


ZONES = ["UTC", "America/St_Johns", "Asia/Kathmandu", "Pacific/Kiritimati", "Etc/GMT+12"]
QUICK_ZONES = ("Asia/Kathmandu", "Etc/GMT+12")

_DEFAULT_ARRIVAL = sa.text("""
INSERT INTO mailglass_events (id, tenant_id, type, occurred_at, metadata, needs_reconciliation)
SELECT gen_random_uuid(), 'acme', 'delivered', '2026-01-01',
       jsonb_build_object('provider', 'postmark', 'message_id', CAST(:n AS text)), true
""")


def move_arrivals(db, seconds):
    """Move the arrivals in the open set into the past; the ledger's rows cannot change."""
    with db.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - make_interval(secs => :s)"),
            {"s": seconds},
        )


def test_the_grace_holds_to_the_second_in_sessions_of_any_time_zone(db):
    """Rows that took the column's default, in sessions west and east of UTC, are linked neither early nor late."""
    for zone in ZONES:
        with db.engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL TimeZone = '{zone}'")
            connection.execute(_DEFAULT_ARRIVAL, {"n": zone})
    insert(db, [delivery_row(zone) for zone in ZONES])
    assert db.value(
        "SELECT bool_and(o.arrived_at = w.utc) FROM mailglass_open_orphans AS o"
        " JOIN witness.events AS w ON w.id = o.event_id"
    )
    move_arrivals(db, 29)
    assert reconcile().scanned == 0
    move_arrivals(db, 31)
    assert counts(reconcile()) == {"linked": len(ZONES)}


@pytest.mark.parametrize(
    "zone", [pytest.param(zone, marks=() if zone in QUICK_ZONES else pytest.mark.slow) for zone in ZONES]
)
def test_the_grace_holds_on_a_server_of_any_time_zone(db, zone, monkeypatch):
    """The time zone is the database's default; explicit times are read as UTC there too."""
    monkeypatch.delenv("PGTZ", raising=False)
    db.set_default("timezone", zone)
    with db.engine.begin() as connection:
        assert connection.exec_driver_sql("SHOW TimeZone").scalar_one() == zone
        factories.insert(
            connection,
            [delivery_row("old"), delivery_row("young"), delivery_row("default")],
            [
                orphan_row(postmark("old"), age_seconds=61),
                orphan_row(postmark("young"), age_seconds=30, occurred_at="2026-01-01"),
            ],
        )
        connection.execute(_DEFAULT_ARRIVAL, {"n": "default"})
    assert counts(reconcile()) == {"linked": 1}
    move_arrivals(db, 61)
    assert counts(reconcile()) == {"linked": 2}


def test_an_expired_orphan_is_not_looked_at(db):
    """The ages are a minute on either side of seven days."""
    minutes = 10_080
    insert(db, [delivery_row("one")])
    insert(db, events=[orphan_row(postmark("one"), age_seconds=60 * (minutes + d)) for d in (-1, 1)])
    assert counts(reconcile()) == {"linked": 1}


BAD = {
    "null": None,
    "an array": [{"provider": "postmark", "message_id": "one"}],
    "a string": "postmark",
    "a number": 7,
    "true": True,
    "no keys": {},
    "no id": {"provider": "postmark"},
    "an object for an id": postmark({"id": "one"}),
    "an array for an id": postmark(["one"]),
    "a boolean for an id": postmark(True),
    "null for an id": postmark(None),
    "an empty id": postmark(""),
    "a blank id": postmark(" \t\r\n "),
    "a fraction for an id": postmark(1.5),
    "too long an id": postmark("x" * 513),
    "an id of 1 MB": postmark("x" * 1_000_000),
    "a control character": postmark("one\x01"),
    "an object for a provider": {"provider": {"name": "postmark"}, "message_id": "one"},
    "a provider of 1 MB": {"provider": "p" * 1_000_000, "message_id": "one"},
    "a lone surrogate's escape": postmark("\\ud800\x02"),
    "more than 64 kB of text": postmark("one", body="x" * 66_000),
}


def test_bad_input_is_counted_with_its_reason_and_does_not_delay_others(db):
    """Every kind of bad input is beside an event that matches; a second sweep counts the same."""
    insert(db, [delivery_row("one")])
    insert(db, events=[orphan_row(value, age_seconds=500) for value in BAD.values()])
    factories.orphan(db, postmark("one"))
    assert counts(reconcile()) == {"linked": 1, "unmatchable": len(BAD)}
    assert counts(reconcile()) == {"unmatchable": len(BAD)}


def test_an_event_of_more_than_64_kb_in_one_column_is_unmatchable_whichever_it_is(db):
    insert(db, [delivery_row("one")])
    big = {"body": "x" * 66_000}
    id_ = {"provider": "postmark", "provider_message_id": "one"}
    insert(db, events=[orphan_row(postmark("one"), normalized_payload=big), orphan_row(big, normalized_payload=id_)])
    assert counts(reconcile()) == {"unmatchable": 2}


def test_a_document_that_python_cannot_read_makes_its_event_unmatchable(db):
    """Postgres stores numbers of any length; the other events of the slice are linked."""
    insert(db, [delivery_row("one")])
    factories.orphan(db, postmark("one"))
    row = orphan_row(postmark("one"))
    insert(db, events=[row | {"metadata": row["metadata"][:-1] + ', "number": 1' + "0" * 5_000 + "}"}])
    assert counts(reconcile()) == {"linked": 1, "unmatchable": 1}


def test_documents_are_read_as_many_at_a_time_as_fit_into_memory(db):
    """They are read in several statements; none is left out, and a deleted one does not delay the others."""
    number = ledger.SLICE_BYTES // ledger.DOCUMENT_BYTES  # two thirds are compressed, and count as two texts each
    rows = [orphan_row(postmark(f"m-{n}", body="x" * (3_000 if n % 3 else 10))) for n in range(number)]
    insert(db, events=rows)
    ids = [row["id"] for row in rows]
    ids[7:7] = [str(uuid.uuid4())]
    with db.database.reading() as tx, statements(db.engine) as sent:
        documents = list(ledger.load_documents(tx.reading, ids))
    assert len(sent) == 2
    assert [event_id for event_id, _ in documents] == [row["id"] for row in rows]
    assert [document.metadata["message_id"] for _, document in documents] == [f"m-{n}" for n in range(number)]


def test_what_surrounds_a_good_id_does_not_matter(db):
    """Much text beside the id, a number as the id, and white space around it are accepted."""
    insert(db, [delivery_row(name) for name in ("one", "7", "three", "four", "512" + "x" * 509)])
    events = [
        orphan_row(postmark("one", body="x" * 60_000)),
        orphan_row(postmark(7)),
        orphan_row(postmark("  three\n")),
        orphan_row({"provider": "postmark"}, normalized_payload={"provider_message_id": "four"}),
        orphan_row(postmark("512" + "x" * 509)),
    ]
    insert(db, events=events)
    assert counts(reconcile()) == {"linked": 5}


def test_unknown_types_and_tenants_are_linked_or_counted(db):
    delivery = factories.delivery(db, "one")
    insert(db, events=[orphan_row(postmark("one"), type=kind) for kind in ("weird", "", "x" * 10_000)])
    factories.orphan(db, postmark("one"), tenant_id="nobody's ' \" % * tenant")
    assert counts(reconcile()) == {"linked": 3, "tenant_mismatch": 1}
    row = db.rows(
        "SELECT last_event_type, lock_version FROM mailglass_deliveries WHERE id = CAST(:id AS uuid)", id=delivery
    )
    assert row == [("dispatched", 1)]


def test_impossible_times_are_linked(db):
    """Infinite times, times before Christ and in the far future count as arrival."""
    kinds = ["infinity", "-infinity", "0044-03-15 BC", "290000-01-01"]
    insert(db, [delivery_row(kind) for kind in kinds])
    insert(db, events=[orphan_row(postmark(kind), occurred_at=kind) for kind in kinds])
    assert counts(reconcile()) == {"linked": len(kinds)}
    assert (
        db.value("SELECT count(*) FROM mailglass_deliveries WHERE delivered_at < now()::timestamp - '10 min'::interval")
        == 0
    )


@pytest.mark.parametrize(
    ("tenant", "channel"),
    [
        ("acme", "mailglass:events:acme"),
        ("A.b_c-9", "mailglass:events:A.b_c-9"),
        ("a:b", "mailglass:events:a%3Ab"),
        ("*", "mailglass:events:%2A"),
        ("100%~ ü/", "mailglass:events:100%25%7E%20%C3%BC%2F"),
    ],
)
def test_a_link_is_published_once_on_each_of_two_channels(db, subscriber, tenant, channel):
    """Channel and payload are those of the documentation."""
    delivery = factories.delivery(db, "one", tenant_id=tenant)
    orphan = factories.orphan(
        db,
        postmark("one", recipient=factories.RECIPIENT),
        tenant_id=tenant,
        type="opened",
        occurred_at="2026-02-03 04:05:06.5",
    )
    assert reconcile().published == 2
    heard = db.witness.messages()
    payload = {
        "event": "delivery_updated",
        "delivery_id": delivery,
        "event_type": "reconciled",
        "meta": {
            "event_id": db.value("SELECT id::text FROM mailglass_events WHERE type = 'reconciled'"),
            "reconciled_from_event_id": orphan,
            "type": "opened",
            "occurred_at": "2026-02-03T04:05:06.5Z",
            "tenant_id": tenant,
        },
    }
    assert heard == [(channel, payload), (f"{channel}:{delivery}", payload)]
    assert events_channel(tenant) == channel
    assert events_channel(tenant, delivery) == f"{channel}:{delivery}"
    assert reconcile().published == 0


def test_nothing_is_published_before_its_commit(db, redis_url):
    """A subscriber that looks up each event when its message arrives always finds it."""
    rows = [delivery_row(str(n)) for n in range(60)]
    insert(db, rows, [orphan_row(postmark(str(n))) for n in range(60)])
    configure(db, batch_size=10)
    result = Counter()
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    with (
        client.pubsub() as pubsub,
        db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        pubsub.psubscribe("mailglass:events:*")
        wait_until(lambda: (pubsub.get_message(timeout=1) or {}).get("type") == "psubscribe")
        sweeping = threading.Thread(target=reconcile)
        sweeping.start()

        while result.total() < 120:
            message = pubsub.get_message(timeout=PATIENCE)
            assert message, "not all is told of"
            if message["data"].startswith("{"):
                event_id = json.loads(message["data"])["meta"]["event_id"]
                query = sa.text("SELECT count(*) FROM mailglass_events WHERE id = CAST(:id AS uuid)")
                result[connection.execute(query, {"id": event_id}).scalar_one()] += 1
        sweeping.join()
    assert result == {1: 120}


@pytest.mark.parametrize("is_there", [True, False], ids=["silent", "absent"])
def test_a_redis_that_is_away_costs_messages_and_a_second(db, caplog, is_there):
    """Everything is linked, lost messages are counted, the status is ok, and the log has one line.

    It is asked twice at most, for half a second each, however many batches there are.
    """
    insert_pairs(db, [str(n) for n in range(30)])
    with silent() as (port, accepted):
        url = f"redis://127.0.0.1:{port if is_there else free_port()}/0"
        configure(db, redis_url=type(db.settings.redis_url)(url), batch_size=3)
        result = reconcile()
        assert len(accepted) <= 2
    assert counts(result) == {"linked": 30}
    assert (result.published, result.publish_failed, result.status) == (0, 60, "ok")
    assert len([record for record in caplog.records if "publish" in record.message]) == 1


def test_an_orphan_that_somebody_else_settled_leaves_the_open_set_untold(db):
    """Its `reconciled` event was inserted while our trigger was disabled; the holder of the key has closed it."""
    delivery = factories.delivery(db, "one")
    orphan = factories.orphan(db, postmark("one"))
    with db.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        factories.insert(connection, events=[reconciled_row(orphan, delivery)])
    result = reconcile()
    assert (result.linked, result.published, result.remaining, result.skipped) == (0, 0, 0, 1)
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0
    assert db.value("SELECT lock_version FROM mailglass_deliveries") == 1


def test_a_row_that_the_database_refuses_costs_that_row_only(db, caplog):
    """One delivery cannot be written; the others of its batch are linked, and the result says partial."""
    db.run("ALTER TABLE mailglass_deliveries ADD CHECK (NOT (terminal AND provider_message_id = '3'))")
    insert_pairs(db, [str(n) for n in range(8)])
    result = reconcile()
    assert (counts(result), result.status, result.remaining) == ({"linked": 7, "failed": 1}, "partial", 1)
    assert "23514" in caplog.text


def test_an_event_that_is_no_orphan_never_calls_our_triggers(db):
    """EXPLAIN ANALYZE lists the triggers that an insert calls."""

    def called_triggers(row):
        statement = sa.text(f"EXPLAIN (ANALYZE, FORMAT JSON) {factories._EVENT.text}")
        with db.engine.connect() as connection:
            plan = connection.execute(statement, row).scalar_one()[0]
        return {trigger["Trigger Name"] for trigger in plan["Triggers"] if trigger["Calls"]} - {"witness"}

    ordinary = {"needs_reconciliation": False, "delivery_id": factories.new_id()}
    assert called_triggers(orphan_row({}, **ordinary)) == set()
    assert called_triggers(orphan_row({}, **ordinary, idempotency_key="postmark:reconciled:1")) == set()
    assert called_triggers(orphan_row({}, delivery_id=factories.new_id())) == set()
    assert called_triggers(orphan_row({}, needs_reconciliation=False)) == set()
    assert called_triggers(orphan_row({})) == {"mailglass_open_orphans_add"}
    assert called_triggers(reconciled_row(factories.new_id(), None)) == {"mailglass_open_orphans_remove"}


def test_a_second_sweep_with_another_engine_sees_the_same(db):
    """No state is kept in a process."""
    insert_pairs(db, ["one"])
    configure(db)
    database = databases.Database(engines.create_engine(db.settings), db.settings)
    assert Sweep(database, Publisher(runtime.get_redis())).run().linked == 1
    assert reconcile().scanned == 0


@pytest.mark.parametrize("origin", ["python", "call"])
@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_goes_on_during_a_sweep_and_is_as_it_was_after_two_at_once(db, enabled, origin):
    """In a worker it runs less often meanwhile, also for other tasks of the process; in an application as ever."""
    insert_pairs(db, ["one"])
    before, observed = (gc.isenabled(), gc.get_threshold()), []

    def observe():
        observed.append((gc.isenabled(), gc.get_threshold()))

    def break_off(result):
        observe()
        reconciler.prepare(origin=origin).run()
        observe()
        raise RuntimeError("broken off")

    gc.set_threshold(600, 5, 7)
    if not enabled:
        gc.disable()
    try:
        with pytest.raises(RuntimeError, match="broken off"):
            sweeping.run(reconciler.prepare(origin=origin), break_off)
        observe()
        during = (enabled, (600 if origin == "python" else 5_000, 5, 7))
        assert observed == [during, during, (enabled, (600, 5, 7))]
    finally:
        gc.enable()
        gc.set_threshold(*before[1])
