"""Erasure: no table has the address any more, in any spelling, and no other person's rows change."""

import json
import re
import uuid

import pytest
import sqlalchemy as sa

import commands
import factories
import mailglass_reconcile
from handling import make_due, register
from mailglass_reconcile import InvalidEventError, Sent, erase, record_send
from mailglass_reconcile.ops import explanation
from mailglass_reconcile.record import erasure
from mailglass_reconcile.store.caller_transaction import use_caller_transaction
from mailglass_reconcile.store.database import in_schema
from mailglass_reconcile.store.tables import open_orphans, personal_data, stored_keys
from personal import ADA, erase_person, raw
from recording import event, record

SPELLINGS = (
    "ada@bücher.example",
    "ADA@BÜCHER.example",
    "Ada <ada@xn--bcher-kva.example>",
    " Ada@XN--BCHER-KVA.example ",
)
OTHER_ADDRESSES = ("jada@bücher.example", "ada@bucher.example", "ada@xn--bcher-kva.example.org", "ada+1@bücher.example")
RECIPIENTS = "SELECT recipient FROM mailglass_deliveries ORDER BY recipient"


def dump(db):
    """Return all rows of all our tables as text."""
    tables = db.rows("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    return "\n".join(
        text
        for (name,) in tables
        for (text,) in db.rows(f"SELECT t::text FROM public.{name} AS t")  # noqa: S608
    )


def test_a_dump_holds_the_address_no_more(handler_db):
    """Our writers recorded everything, and the metadata has no address.

    The name has letters that no id in hexadecimal digits has.
    """
    mailglass_reconcile.on_event("bounced", name="handler")(lambda _connection, _event: None)
    sends = [Sent(recipient="Lovelace <Lovelace@Example.com>", message_id=id_) for id_ in ("m-1", "m-2")]
    with handler_db.engine.begin() as connection:
        record_send(connection, tenant_id=factories.TENANT, provider="postmark", sent=sends, metadata={"order": 1})
        record(connection, event("m-1", "bounced", recipient="lovelace@example.com"), provider="postmark")
        record(
            connection, event("nobody's", recipient="LOVELACE@example.com", provider_event_id="2"), provider="postmark"
        )
        record(connection, event("m-3", recipient="bob@example.com", provider_event_id="3"), provider="postmark")
    raw(handler_db, {"Recipient": "Lovelace@Example.com"})
    mailglass_reconcile.reconcile()
    assert dump(handler_db).lower().count("lovelace@example.com") == 4
    result = erase_person(handler_db, "lovelace@example.com")
    assert (result.deliveries, result.open_orphans, result.webhook_events) == (2, 1, 1)
    assert [place[:8] for place in result.not_reached] == ["metadata"]
    remaining = dump(handler_db).lower()
    assert "lovelace" not in remaining
    assert "bob@example.com" in remaining


def test_every_spelling_is_erased_and_nobody_else(tx):
    """International domains match in both forms; each delivery gets a random recipient and empty metadata."""
    for number, recipient in enumerate([*SPELLINGS, *OTHER_ADDRESSES]):
        factories.delivery(tx, None if number % 2 else f"m-{number}", recipient=recipient)
    tx.run("""UPDATE mailglass_deliveries SET metadata = '{"to": "me"}', last_error = '{"to": "me"}'""")
    for spelling in (ADA, "Ada <ADA@xn--bcher-kva.example>"):
        result = erase_person(tx, spelling)
        assert result.deliveries == (len(SPELLINGS) if spelling == ADA else 0)
    rows = tx.rows("SELECT recipient, recipient_domain, metadata, last_error FROM mailglass_deliveries")
    erased_rows = [row for row in rows if row.recipient not in OTHER_ADDRESSES]
    assert len({row.recipient for row in erased_rows}) == len(SPELLINGS)
    assert {row.recipient.partition("@")[2] for row in erased_rows} == {"erased.invalid"}
    assert {(row.recipient_domain, str(row.metadata), row.last_error) for row in erased_rows} == {
        ("erased.invalid", "{}", None)
    }
    assert {str(row.metadata) for row in rows if row.recipient in OTHER_ADDRESSES} == {"{'to': 'me'}"}


def test_one_tenant_alone_can_be_erased(tx):
    """The other tenant's delivery, orphan and raw webhook stay."""
    for tenant in (factories.TENANT, "other"):
        factories.delivery(tx, recipient=ADA, tenant_id=tenant)
        record(tx.connection, event(recipient=ADA), tenant_id=tenant)
        raw(tx, {"to": ADA}, tenant)
    assert erase_person(tx, tenant_id="other") == erasure.Erased(1, 1, 1, (erasure.APPLICATION_METADATA,))
    assert dump(tx).count(ADA) == 2
    assert dump(tx).count("ada@xn--bcher-kva.example") == 1
    assert erase_person(tx) == erasure.Erased(1, 1, 1, (erasure.APPLICATION_METADATA,))


def test_a_raw_webhook_that_names_the_person_is_emptied(tx):
    """The address may stand anywhere, also percent-encoded; the row keeps its status."""
    naming_ada = [
        raw(tx, {"events": [{"to": "x"}, {"link": "https://example.com/?e=Ada%40b%C3%BCcher.example"}]}),
        raw(tx, {"to": ["<ADA@xn--bcher-kva.example>"]}),
        raw(tx, {}, event_id="0001:ada@bücher.example"),
        raw(tx, {"text": "Hello\nada@bücher.example"}),
        raw(tx, {"text": "Hello\tada@bücher.example\tand others"}),
        raw(tx, {"Message": json.dumps({"headers": "To:\r\nAda@Bücher.example"})}),
        raw(tx, {"Message": json.dumps({"to": "<ada@bücher.example>"}).replace("<", "\\u003c")}),
    ]
    unrelated = [raw(tx, {"to": address}) for address in OTHER_ADDRESSES]
    assert erase_person(tx).webhook_events == len(naming_ada)
    rows = tx.rows("SELECT id::text AS id, raw_payload, status, provider_event_id FROM mailglass_webhook_events")
    assert {row.id for row in rows if not row.raw_payload} == set(naming_ada)
    assert {row.id for row in rows if row.raw_payload} == set(unrelated)
    assert {row.status for row in rows} == {"succeeded"}
    assert not [row for row in rows if "@" in row.provider_event_id]


def test_later_events_stay_open_and_explain_says_why(db):
    """Later events are about a recipient without a delivery, earlier ones about an unknown recipient."""
    factories.delivery(db, "m-1", recipient=ADA)
    with db.engine.begin() as connection:
        (before,) = record(connection, event("m-2", recipient=ADA))
    erase_person(db)
    with db.engine.begin() as connection:
        (later,) = record(connection, event("m-1", recipient=ADA, provider_event_id="2"))
    factories.delivery(db, "m-2", recipient=ADA)
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    for _ in range(2):
        result = mailglass_reconcile.reconcile()
        assert (result.linked, result.recipient_mismatch, result.ambiguous) == (0, 1, 1)
        commands.run_here("rekey")
    explained = explanation.explain(db.database, later.event_id)
    assert (explained.state, "was erased" in explained.sentence) == ("recipient_mismatch", True)
    assert "nothing, if it is about a person who was erased" in explained.remedy[0]
    explained = explanation.explain(db.database, before.event_id)
    assert (explained.state, "(erased, or lost" in explained.sentence) == ("ambiguous", True)


def test_a_send_that_is_recorded_again_does_not_bring_the_address_back(tx):
    """Its key in the ledger is a digest, so it is recognised, and its delivery does not change."""
    for is_repeated in (False, True):
        sent = [Sent(recipient=ADA, message_id="m-1")]
        (recorded,) = record_send(tx.connection, tenant_id=factories.TENANT, provider="postmark", sent=sent)
        assert erase_person(tx).deliveries == int(not is_repeated)
    assert tx.rows("SELECT id, recipient LIKE '%@erased.invalid' FROM mailglass_deliveries") == [
        (recorded.delivery_id, True)
    ]


def test_a_sweep_that_has_read_the_address_before_does_not_write_it_back(db):
    """The keys of an open orphan are stored some time after they were read."""
    with db.engine.begin() as connection:
        (recorded,) = record(connection, event("m-1", recipient=ADA))
    with db.engine.begin() as connection, use_caller_transaction(connection, db.settings) as tx:
        (read,) = open_orphans.read(tx.reading, [str(recorded.event_id)])
    erase_person(db)
    assert read.keys.recipient
    with db.engine.begin() as connection, use_caller_transaction(connection, db.settings) as tx:
        id_ = str(recorded.event_id)
        stored_keys.store(tx, {id_: stored_keys.StoredKeys(read.keys, "unmatched")}, {id_: read.keys.rank})
    assert db.rows("SELECT recipient, recipient_lost FROM mailglass_open_orphans") == [(None, True)]


def test_a_handler_that_runs_later_gets_no_recipient(handler_db):
    """It must not write to the address at erased.invalid."""
    heard = []
    mailglass_reconcile.on_event("bounced", name="heard")(lambda _, event: heard.append(event.recipient))
    register(handler_db)
    factories.delivery(handler_db, "m-1", recipient=ADA)
    with handler_db.engine.begin() as connection:
        record(connection, event("m-1", "bounced", recipient=ADA))
    erase_person(handler_db)
    make_due(handler_db)
    mailglass_reconcile.dispatch()
    assert heard == [None]


def test_on_mailglass_s_tables_only_open_orphans_are_emptied(db):
    """The result names what only Mailglass can erase."""
    db.run("CREATE TABLE mailglass_suppressions (id uuid)")
    factories.delivery(db, recipient=ADA)
    raw(db, {"to": ADA})
    with db.engine.begin() as connection:
        record(connection, event(recipient=ADA))
    assert erase_person(db) == erasure.Erased(0, 1, 0, (erasure.APPLICATION_METADATA, erasure.MAILGLASS_TABLES))
    assert dump(db).count(ADA) == 2


def test_after_an_erased_cc_the_sweep_does_not_speak_of_several_deliveries(db):
    factories.delivery(db, "m-1", recipient="bob@example.com")
    with db.engine.begin() as connection:
        (before,) = record(connection, event("m-1", recipient=ADA))
    erase_person(db)
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    (output,) = [line for line in commands.run_here("sweep").output.splitlines() if "ambiguous" in line]
    assert "the event's recipient is unknown" in output
    assert "several deliveries have this id, or" in output
    assert "(erased, or lost" in explanation.explain(db.database, before.event_id).sentence


def test_it_is_the_callers_transaction_and_what_is_no_address_is_refused(db):
    """A rollback restores everything; no error repeats the argument."""
    factories.delivery(db, recipient=ADA)
    with db.engine.connect() as connection:
        assert erase(connection, recipient=ADA).deliveries == 1
        connection.rollback()
    assert db.value(RECIPIENTS) == ADA
    for recipient in ("", "canary", "canary@", "canary@erased.invalid", None):
        with db.engine.begin() as connection, pytest.raises(InvalidEventError) as refused:
            erase(connection, recipient=recipient)
        assert "canary" not in str(refused.value)
    with db.engine.begin() as connection, pytest.raises(InvalidEventError, match="tenant_id must be"):
        erase(connection, recipient=ADA, tenant_id=" ")


@pytest.mark.slow
def test_rows_are_erased_in_batches_in_the_order_of_their_ids(db, set_limits):
    """The command commits each batch; while a session locks a row, the batches before it are done."""
    set_limits(batch_rows=2)
    factories.insert(db, [factories.delivery_row(recipient=ADA) for _ in range(5)])
    for _ in range(3):
        raw(db, {"to": ADA})
    last = str(db.value("SELECT id FROM mailglass_deliveries ORDER BY id DESC LIMIT 1"))
    target = erasure.validate_erasure(ADA)
    with db.engine.begin() as holder:
        holder.execute(sa.text("SELECT FROM mailglass_deliveries WHERE id = :id FOR UPDATE"), {"id": uuid.UUID(last)})
        with pytest.raises(mailglass_reconcile.DatabaseRefusedError):
            erasure.erase_with(db.database, target)
        assert db.value("SELECT count(*) FROM mailglass_deliveries WHERE recipient = :r", r=ADA) == 1
    result = erasure.erase_with(db.database, target)
    assert (result.deliveries, result.webhook_events) == (1, 3)


READ = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'mailglass_deliveries'"


def test_a_delivery_is_read_once_however_many_batches_there_are(tx, set_limits):
    """Each is found, locked and written; the placeholder and the old version are passed over."""
    set_limits(batch_rows=10)
    factories.insert(tx, [factories.delivery_row(recipient=ADA) for _ in range(200)])
    before = tx.value(READ)
    assert erase(tx.connection, recipient=ADA).deliveries == 200
    assert tx.value(READ) - before <= 5 * 200


def test_the_command_counts_and_erases(db):
    """Without a terminal it requires --yes; no output has the address."""
    factories.delivery(db, recipient="ada@example.com")
    dry = commands.run_here("erase", "ada@example.com", "--dry-run")
    assert dry.output.splitlines()[0] == "would erase the address from 1 delivery, 0 open events and 0 raw webhooks"
    refused = commands.run_here("erase", "ada@example.com")
    assert (refused.exit_code, "--yes" in refused.stderr) == (2, True)
    assert commands.run_here("erase", "ada").exit_code == 2
    assert db.value(RECIPIENTS) == "ada@example.com"
    result = commands.run_here("erase", "Ada@Example.com", "--yes", "--json")
    assert commands.conforming("erase", result.output)[0]["deliveries"] == 1
    assert not [item for item in (dry, refused, result) if "ada@" in item.output.lower()]
    assert db.value(RECIPIENTS).endswith("@erased.invalid")


@pytest.mark.slow
def test_the_command_reads_the_address_from_standard_input(db):
    """The shell's history does not keep the address; at a terminal it prompts for it and then for a confirmation."""
    factories.delivery(db, recipient=ADA)
    result = commands.run(db, "erase", "-", "--dry-run", stdin=f"{ADA.upper()}\n")
    assert "from 1 delivery" in result.stdout
    output = commands.run_on_terminal(db, "erase", "-", typed=f"{ADA}\ny\n", code=0)
    assert ("address or id: " in output, "erased the address from 1 delivery" in output) == (True, True)
    assert db.value(RECIPIENTS).endswith("@erased.invalid")


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "code", "remaining"), [("n", 130, 1), ("y", 0, 0)])
def test_at_a_terminal_the_command_asks(db, answer, code, remaining):
    factories.delivery(db, recipient=ADA)
    output = " ".join(commands.run_on_terminal(db, "erase", ADA, typed=f"{answer}\n", code=code).split())
    assert "erase the address from 1 delivery, 0 open events and 0 raw webhooks? This cannot be undone" in output
    assert db.value("SELECT count(*) FROM mailglass_deliveries WHERE recipient = :r", r=ADA) == remaining


@pytest.mark.slow
@pytest.mark.parametrize("tenant_id", [None, pytest.param("tenant-7", marks=pytest.mark.slow)])
def test_the_deliveries_are_found_by_our_index(db, tenant_id):
    """No other index has an address in any spelling; a scan would compute a key for each row."""
    db.broken.update(("I2", "I7"))
    db.run("""INSERT INTO mailglass_deliveries
                     (id, tenant_id, mailable, stream, recipient, recipient_domain, provider, provider_message_id,
                      last_event_type, last_event_at, inserted_at, updated_at)
              SELECT ('019f0000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'tenant-' || n % 50,
                     'python', 'bulk', 'r' || n || '@example.org', 'example.org', 'postmark', 'm-' || n,
                     'dispatched', now(), now(), now()
                FROM generate_series(1, 10000) AS n""")
    person = erasure.validate_erasure("R7@example.org", tenant_id).person
    for _ in range(2):
        for begin in (db.database.reading, db.database.writing):
            with begin() as tx:
                result = personal_data.find_deliveries(tx, person, 10)
                assert [recipient for _, recipient in result] == ["r7@example.org"]
                # As in a caller's transaction: a generic plan.
                tx.execute("SET LOCAL plan_cache_mode = force_generic_plan")
                statement = in_schema(personal_data._DELIVERIES, tx.schema)
                for number, name in enumerate(("key", "tenant_id", "size"), 1):
                    statement = re.sub(rf"(?<!:):{name}\b", f"${number}", statement)
                tx.execute(f"PREPARE erasing AS {statement}")
                probe = f"EXPLAIN EXECUTE erasing ('{person.key}', '{tenant_id}', 10)"
                plan = "\n".join(tx.execute(probe.replace("'None'", "NULL"), {}).scalars())
                tx.execute("DEALLOCATE erasing")
            assert "mailglass_deliveries_recipient_idx" in plan, plan
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE mailglass_deliveries")
