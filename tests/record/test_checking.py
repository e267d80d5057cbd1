"""What a writer refuses and what it repairs: all of it before anything is written."""

import datetime as dt
import math
import uuid

import pytest

import factories
from mailglass_reconcile import InvalidEventError, append
from recording import LEDGER, NOW, event, metadata, record

pytestmark = pytest.mark.slow

ADDRESS = "bob-4711@example.com"
LAST = dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=9)))


def refused(tx, *events, **more):
    """Record events of which the last cannot be recorded, and return the error's message; nothing was written."""
    with pytest.raises(InvalidEventError) as caught:
        record(tx.connection, event(), *events, **more)
    assert tx.value(LEDGER) == 0
    return str(caught.value)


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
    """The second event of the webhook is the bad one; the first is not recorded either."""
    error = refused(tx, event(**{field: value}))
    assert error.startswith(f"events[1].{field.removesuffix('_')}")
    assert reason in error


@pytest.mark.guard
def test_no_refusal_repeats_a_value(tx):
    """An address in a wrong place, or as a key, is not quoted."""
    for wrong in (
        {"type_": ADDRESS},
        {"reject_reason": ADDRESS},
        {"occurred_at": ADDRESS},
        {"metadata": {ADDRESS: {ADDRESS: {"x"}}}},
        {"metadata": {"k": {ADDRESS}}},
    ):
        assert "bob" not in refused(tx, event(**wrong))


def test_metadata_that_holds_itself_is_refused(tx):
    """As is what is nested too deeply."""
    circular = {}
    circular["again"] = circular
    assert "nested deeper than 32 levels" in refused(tx, event(metadata=circular))


@pytest.mark.parametrize("tenant", ["", "  ", "a\x00b", "a\nb", "\ud800", "x" * 513, 7])
def test_a_tenant_that_no_row_could_have_is_refused(tx, tenant):
    """Empty, too long, with control characters, or no string at all."""
    assert refused(tx, tenant_id=tenant).startswith("tenant_id must be a string of 1 to 512 characters")


@pytest.mark.parametrize("provider", ["", "  ", "post\nmark", "x" * 513, None])
def test_a_provider_that_cannot_be_matched_is_refused(tx, provider):
    """As for a tenant."""
    assert refused(tx, provider=provider).startswith("provider must be a string of 1 to 512 characters")


@pytest.mark.guard
@pytest.mark.parametrize("events", [event(), ["evt"], None])
def test_events_must_be_a_list_of_events(tx, events):
    """One alone, a string and None are said to be wrong."""
    assert "WebhookEvent" in refused(tx, events=events)


@pytest.mark.guard
@pytest.mark.parametrize(
    ("given", "kept"),
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
def test_what_json_or_postgres_cannot_hold_is_repaired(tx, given, kept):
    """The event is recorded, at the first attempt of the provider."""
    record(tx.connection, event(metadata={"value": given}))
    append(tx.connection, tenant_id="acme", type="opened", occurred_at=NOW, metadata={"value": given})
    assert tx.rows("SELECT metadata -> 'value' FROM mailglass_events") == [(kept,)] * 2


def test_texts_of_an_event_are_repaired_too(tx):
    """Ids and recipient with NUL and half a surrogate, and of any length."""
    odd = "m\x00\ud800"
    record(
        tx.connection,
        event(odd, provider_event_id=odd, recipient=odd),
        event("x" * 2_000, provider_event_id="y" * 2_000, recipient="z" * 2_000),
    )
    stored = {row[0]["message_id"]: row[0] for row in tx.rows("SELECT metadata FROM mailglass_events")}
    assert stored["m\ufffd\ufffd"]["provider_event_id"] == "m\ufffd\ufffd"
    assert stored["x" * 513]["provider_event_id"] == "y" * 512
    assert set(tx.rows("SELECT recipient FROM mailglass_open_orphans")) == {("m\ufffd\ufffd",), ("z" * 512,)}


def test_integers_are_ids_as_their_digits(tx):
    """Mailjet's message id is one, and so may be an event's id."""
    record(tx.connection, event(576460752303423488, provider_event_id=7))
    (again,) = record(tx.connection, event("576460752303423488", provider_event_id="7"))
    assert again.event_id is None
    assert metadata(tx)["message_id"] == "576460752303423488"
    assert metadata(tx)["provider_event_id"] == "7"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"type": "deliverd"}, "type is not a known type (did you mean delivered?)"),
        ({"tenant_id": ""}, "tenant_id must be"),
        ({"occurred_at": None}, "occurred_at must be a datetime"),
        ({"reject_reason": "weird"}, "reject_reason is not a known reason"),
        ({"metadata": {"k": {1}}}, "metadata['k'] is a set"),
        ({"delivery_id": "m-1"}, "delivery_id must be a UUID or None"),
        ({"idempotency_key": ""}, "idempotency_key must be a string of 1 to 512"),
        ({"idempotency_key": "k\x00"}, "idempotency_key must be a string of 1 to 512"),
        ({"idempotency_key": f"reconciled:{factories.new_id()}"}, "idempotency_key must not begin with"),
        ({"idempotency_key": "webhook:1"}, "idempotency_key must not begin with"),
    ],
)
def test_append_refuses_the_same_and_keys_that_are_not_its_own(tx, wrong, said):
    """With the field and the reason."""
    row = {"tenant_id": "acme", "type": "opened", "occurred_at": NOW, **wrong}
    with pytest.raises(InvalidEventError) as caught:
        append(tx.connection, **row)
    assert str(caught.value).startswith(said)
    assert tx.value(LEDGER) == 0
