"""Validation: what a writer refuses and what it repairs before it writes; no address reaches the ledger."""

import datetime as dt
import math
import re
import uuid

import pytest

import factories
from mailglass_reconcile import InvalidEventError, append
from mailglass_reconcile import reconcile as sweep
from recording import LEDGER, NOW, event, metadata, record

pytestmark = pytest.mark.version_independent

ADDRESS = "bob-4711@example.com"
LAST = dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=9)))


def record_invalid(tx, *events, **more):
    """Record events of which the last is invalid; return the error's message after checking that nothing was
    written.
    """
    with pytest.raises(InvalidEventError) as caught:
        record(tx.connection, event(), *events, **more)
    assert tx.value(LEDGER) == 0
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("type_", "deliverd", "did you mean delivered?"),
        ("type_", "Bounced", "did you mean bounced?"),
        ("type_", "", "known types: "),
        ("type_", None, "known types: "),
        ("type_", "reconciled", "known types: "),
        ("reject_reason", "spamm", "did you mean spam?"),
        ("reject_reason", "", "known reasons: invalid, bounced"),
        ("provider_event_id", None, "must be a string or an integer"),
        ("provider_event_id", "  ", "must not be empty"),
        ("provider_event_id", True, "must be a string or an integer"),
        ("provider_event_id", b"evt", "must be a string or an integer"),
        ("message_id", 1.5, "must be a string, an integer or None"),
        ("recipient", 7, "must be a string or None"),
        ("occurred_at", None, "must be a datetime"),
        ("occurred_at", "2026-03-01", "must be a datetime"),
        ("occurred_at", NOW.replace(tzinfo=None), "must have a time zone"),
        (
            "occurred_at",
            LAST,
            "must be within the years",
        ),
        ("metadata", ["a"], "must be a mapping"),
        ("metadata", {"when": {"nested": b"x"}}, "['when']['nested'] is a bytes"),
        ("metadata", {7: "x"}, "has a key that is not a string"),
        ("metadata", {"text": {str(n): "x" * 4_000 for n in range(20)}}, "is larger than 65,536 bytes"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_its_field_and_reason(tx, field, value, reason):
    """The second event of the webhook is invalid, and the first is not recorded either."""
    error = record_invalid(tx, event(**{field: value}))
    assert error.startswith(f"events[1].{field.removesuffix('_')}")
    assert reason in error


def test_no_refusal_repeats_a_value(tx):
    """An address in a wrong field, or as a key, is not quoted."""
    for wrong in (
        {"type_": ADDRESS},
        {"reject_reason": ADDRESS},
        {"occurred_at": ADDRESS},
        {"metadata": {ADDRESS: {ADDRESS: {"x"}}}},
        {"metadata": {"k": {ADDRESS}}},
    ):
        assert "bob" not in record_invalid(tx, event(**wrong))


@pytest.mark.slow
def test_metadata_that_holds_itself_is_refused(tx):
    """Deeply nested metadata is refused too."""
    circular = {}
    circular["again"] = circular
    assert "nested deeper than 32 levels" in record_invalid(tx, event(metadata=circular))


@pytest.mark.slow
@pytest.mark.parametrize("tenant", ["", "  ", "a\x00b", "a\nb", "\ud800", "x" * 513, 7])
def test_a_tenant_that_no_row_could_have_is_refused(tx, tenant):
    """It is empty, too long, not a string, or has control characters."""
    assert record_invalid(tx, tenant_id=tenant).startswith("tenant_id must be a string of 1 to 512 characters")


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["", "  ", "post\nmark", "x" * 513, None])
def test_a_provider_that_cannot_be_matched_is_refused(tx, provider):
    """The rules are those of a tenant id."""
    assert record_invalid(tx, provider=provider).startswith("provider must be a string of 1 to 512 characters")


@pytest.mark.parametrize("events", [event(), ["evt"], None])
def test_events_must_be_a_list_of_events(tx, events):
    """A single event, a string and None are refused."""
    assert "WebhookEvent" in record_invalid(tx, events=events)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("a\x00b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        (math.nan, None),
        (math.inf, None),
        ([1, (2.5, -math.inf)], [1, [2.5, None]]),
        ({"a\x00": True}, {"a\ufffd": True}),
        (NOW, "2026-03-01T12:00:00+00:00"),
        (dt.datetime(2026, 3, 1, 12), "2026-03-01T12:00:00"),
        (dt.date(2026, 3, 1), "2026-03-01"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        ("x" * 5_000, "x" * 4_095 + "…"),
    ],
)
def test_what_json_or_postgres_cannot_hold_is_repaired(tx, value, stored):
    """The provider's first attempt is recorded."""
    record(tx.connection, event(metadata={"value": value}))
    append(tx.connection, tenant_id="acme", type="opened", occurred_at=NOW, metadata={"value": value})
    assert tx.rows("SELECT metadata -> 'value' FROM mailglass_events") == [(stored,)] * 2


@pytest.mark.slow
def test_texts_of_an_event_are_repaired_too(tx):
    """Ids and recipient may have NUL or half a surrogate, and any length."""
    odd = "m\x00\ud800"
    record(
        tx.connection,
        event(odd, provider_event_id=odd, recipient=f"r{odd}"),
        event("x" * 2_000, provider_event_id="y" * 2_000, recipient="z" * 2_000),
    )
    stored = {row[0]["message_id"]: row[0] for row in tx.rows("SELECT metadata FROM mailglass_events")}
    assert stored["m\ufffd\ufffd"]["provider_event_id"] == "m\ufffd\ufffd"
    assert stored["x" * 513]["provider_event_id"] == "y" * 512
    assert set(tx.rows("SELECT recipient FROM mailglass_open_orphans")) == {("rm\ufffd\ufffd",), ("z" * 1_000,)}


@pytest.mark.slow
def test_integers_are_ids_as_their_digits(tx):
    """Mailjet's message ids are integers, and so may be event ids."""
    record(tx.connection, event(576460752303423488, provider_event_id=7))
    (repeated,) = record(tx.connection, event("576460752303423488", provider_event_id="7"))
    assert repeated.event_id is None
    assert metadata(tx)["message_id"] == "576460752303423488"
    assert metadata(tx)["provider_event_id"] == "7"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"type": "deliverd"}, "type is not a known type (did you mean delivered?)"),
        ({"tenant_id": ""}, "tenant_id must be"),
        ({"occurred_at": None}, "occurred_at must be a datetime"),
        ({"reject_reason": "weird"}, "reject_reason is not a known reason"),
        ({"metadata": {"k": {1}}}, "metadata['k'] is a set"),
        ({"delivery_id": "m-1"}, "delivery_id must be a UUID"),
        ({"idempotency_key": ""}, "idempotency_key must be a string of 1 to 512"),
        ({"idempotency_key": "k\x00"}, "idempotency_key must be a string of 1 to 512"),
        ({"idempotency_key": f"reconciled:{factories.new_id()}"}, "idempotency_key must not begin with"),
        ({"idempotency_key": "webhook:1"}, "idempotency_key must not begin with"),
    ],
)
def test_append_refuses_the_same_and_keys_that_are_not_its_own(tx, wrong, message):
    """The error has the field and the reason."""
    row = {"tenant_id": "acme", "type": "opened", "occurred_at": NOW, **wrong}
    with pytest.raises(InvalidEventError) as caught:
        append(tx.connection, **row)
    assert str(caught.value).startswith(message)
    assert tx.value(LEDGER) == 0


ADDRESSES = "SELECT count(*) FROM mailglass_events AS e WHERE e::text ~* '(bob|@|%40)'"


@pytest.mark.parametrize("attached", [True, False])
def test_the_ledger_says_that_a_recipient_is_known_and_not_which(tx, attached):
    """The flag stays with the event, whether it was attached at once or is an orphan."""
    if attached:
        factories.delivery(tx, "m-1", recipient="bob@example.com")
    record(tx.connection, event("m-1", recipient="bob@example.com"))
    assert metadata(tx)["recipient_known"] is True
    assert tx.value(ADDRESSES) == 0


def test_without_a_recipient_there_is_no_flag(tx):
    """The caller's own metadata cannot set it."""
    record(tx.connection, event("m-1", recipient="  ", metadata={"recipient_known": True}))
    assert "recipient_known" not in metadata(tx)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["recipient", "Recipient", "EMAIL", "Email", " email "])
def test_an_address_under_its_usual_names_is_the_recipient_and_is_left_out(tx, key):
    """Spellings of the key do not matter; a sweep reads the recipient in the same way."""
    factories.delivery(tx, "m-1", recipient="ann@example.com")
    bob = factories.delivery(tx, "m-1", recipient="bob@example.com")
    (recorded,) = record(tx.connection, event("m-1", metadata={key: "bob@example.com", "tag": "welcome"}))
    assert str(recorded.delivery_id) == bob
    assert (metadata(tx)["tag"], metadata(tx)["recipient_known"]) == ("welcome", True)
    assert tx.value(ADDRESSES) == 0


@pytest.mark.parametrize("written", ["Bob <BOB@example.com>", ' "Bob, Jr." <bob@example.com> ', "<bob@example.com>"])
def test_a_recipient_may_have_a_display_name(tx, written):
    """Only its address is compared and stored with an orphan."""
    factories.delivery(tx, "m-1", recipient="ann@example.com")
    bob = factories.delivery(tx, "m-1", recipient="bob@example.com")
    attached, _ = record(tx.connection, event("m-1", recipient=written), event("m-2", recipient=written))
    assert str(attached.delivery_id) == bob
    assert tx.value("SELECT lower(recipient) FROM mailglass_open_orphans") == "bob@example.com"


def test_the_open_orphan_forgets_the_recipient_when_it_is_linked(db):
    """The address that decided between two deliveries of one message is stored nowhere."""
    with db.engine.begin() as connection:
        record(connection, event("m-1", recipient="Bob@example.com"))
    factories.delivery(db, "m-1", recipient="ada@example.com")
    bob = factories.delivery(db, "m-1", recipient="bob@example.com")
    db.run("UPDATE mailglass_open_orphans SET arrived_at = arrived_at - interval '2 minutes'")
    assert sweep().linked == 1
    assert str(db.value("SELECT delivery_id FROM mailglass_events WHERE type = 'reconciled'")) == bob
    assert db.value(ADDRESSES) == 0
    assert db.value("SELECT count(*) FROM mailglass_open_orphans") == 0


def test_a_strict_writer_leaves_out_whatever_looks_like_an_address(tx):
    """Addresses are removed from texts, lists and keys of any depth, and from the event's id; the rest is stored."""
    arguments = {
        "to": "Bob <bob@example.com>",
        "link": "https://example.com/?e=bob%40example.com",
        "tags": ["bob@example.com", "welcome"],
        "data": {"bob@example.com": 1, "bounce": {"to": "bob@example.com", "code": 550}},
        "note": "at @ noon",
    }
    record(tx.connection, event("m-1", metadata=arguments), strict=True)
    assert metadata(tx) == {
        "tags": ["welcome"],
        "data": {"bounce": {"code": 550}},
        "note": "at @ noon",
        "provider": "postmark",
        "provider_event_id": "evt",
        "message_id": "m-1",
    }
    assert tx.value("SELECT count(*) FROM mailglass_events AS e WHERE e::text ~* 'bob'") == 0


@pytest.mark.parametrize("strict", [False, True])
def test_an_address_as_the_id_of_an_event_is_stored_as_a_digest(tx, strict):
    """The ledger can never be erased. A repeated event is still the same one."""
    repeated = event("m-1", provider_event_id="Bounce:bob@example.com")
    record(tx.connection, repeated, strict=strict)
    assert re.fullmatch("[0-9a-f]{64}", metadata(tx)["provider_event_id"])
    assert record(tx.connection, repeated)[0].event_id is None


@pytest.mark.parametrize("fields", [{"recipient": "Bob@example.com"}, {"metadata": {"email": "Bob@example.com"}}])
def test_an_id_that_is_the_events_own_recipient_is_not_stored(tx, fields):
    """The event can never be linked by it."""
    record(tx.connection, event("<BOB@example.com>", smtp_message_id="bob@example.com", **fields))
    assert (metadata(tx)["message_id"], "smtp_message_id" in metadata(tx)) == (None, False)
    assert tx.value("SELECT count(*) FROM mailglass_events AS e WHERE e::text ~* 'bob'") == 0


def test_an_id_that_only_looks_like_an_address_is_stored(tx):
    """A Message-ID does."""
    ids = {"message_id": "<1.bob@example.com>", "smtp_message_id": "<2.bob@example.com>"}
    record(tx.connection, event(recipient="bob@example.com", **ids))
    assert metadata(tx).items() >= ids.items()


def test_without_strict_the_callers_metadata_is_stored_as_given(tx):
    """The documentation says so and names `strict`."""
    record(tx.connection, event("m-1", metadata={"to": "bob@example.com"}))
    assert metadata(tx)["to"] == "bob@example.com"


def record_bounce(tx, **fields):
    """Record one bounce, and return its metadata without the keys that every event has."""
    record(tx.connection, event(None, "bounced", **fields))
    return {name: value for name, value in metadata(tx).items() if name not in ("provider", "provider_event_id")}


@pytest.mark.parametrize("bounce", ["hard", "soft"])
def test_the_kind_and_codes_of_a_bounce_are_stored_in_the_metadata(tx, bounce):
    """They have the names of the fields, even with `strict`, which would take a Message-ID for an address."""
    fields = {"bounce": bounce, "smtp_status": "550 5.1.1", "smtp_message_id": "<a@b.example>"}
    record(tx.connection, event(None, "bounced", **fields), strict=True)
    assert metadata(tx).items() >= fields.items()


def test_an_event_without_them_has_no_such_keys(tx):
    """The row does not grow."""
    assert record_bounce(tx) == {"message_id": None}


def test_of_a_longer_reply_only_the_codes_are_kept(tx):
    """The text may contain an address. A reply without codes is dropped, and the event recorded."""
    assert record_bounce(tx, smtp_status=f"550 5.1.1 <{ADDRESS}>: unknown")["smtp_status"] == "550 5.1.1"


@pytest.mark.parametrize(("reply", "stored"), [(f"550-5.1.1 <{ADDRESS}>", "550 5.1.1"), (550, "550"), (ADDRESS, None)])
def test_a_reply_in_the_caller_s_metadata_is_read_as_one(tx, reply, stored):
    """A text without codes is dropped."""
    assert record_bounce(tx, metadata={"smtp_status": reply}).get("smtp_status") == stored


@pytest.mark.parametrize(("field", "stored"), [(None, "soft"), ("hard", "hard"), ("soft", "soft")])
def test_a_bounce_in_the_caller_s_metadata_counts_where_the_field_is_none(tx, field, stored):
    """The field takes precedence."""
    assert record_bounce(tx, bounce=field, metadata={"bounce": "soft"})["bounce"] == stored


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bounce": "Permanent"}, "bounce is not a known bounce; known bounces: hard, soft"),
        ({"bounce": True}, "bounce is not a known bounce"),
        ({"bounce": "hrad"}, "did you mean hard?"),
        ({"metadata": {"bounce": ADDRESS}}, "metadata['bounce'] is not a known bounce"),
        ({"metadata": {"bounce": {"bounceType": "Permanent"}}}, "metadata['bounce'] is not a known bounce"),
        ({"bounce": "hard", "metadata": {"bounce": "no"}}, "metadata['bounce'] is not a known bounce"),
        ({"smtp_status": 550}, "smtp_status must be a string or None"),
        ({"smtp_message_id": ["a"]}, "smtp_message_id must be a string, an integer or None"),
    ],
)
def test_anything_else_is_refused_with_field_and_reason(tx, fields, reason):
    """A handler that suppresses on `hard` must not get another word; the error has no value."""
    with pytest.raises(InvalidEventError) as caught:
        record(tx.connection, event(), event("m-2", **fields))
    assert str(caught.value).startswith("events[1].")
    assert reason in str(caught.value)
    assert ADDRESS not in str(caught.value)
    assert tx.value(LEDGER) == 0


def test_an_event_that_was_recorded_without_them_is_the_same_event_with_them(tx):
    """A provider may redeliver a webhook after an upgrade of its reader; in one call, the fields make two events."""
    before, after = event("m-1", "bounced"), event("m-1", "bounced", bounce="hard", smtp_status="550")
    record(tx.connection, before)
    assert record(tx.connection, after)[0].event_id is None
    assert [result.event_id is None for result in record(tx.connection, after, before)] == [True, False]
    assert tx.value(LEDGER) == 2
