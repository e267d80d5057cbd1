"""What a webhook says of a bounce: `bounce`, `smtp_status`, and the id that the message has over SMTP."""

import pytest

from mailglass_reconcile import InvalidEventError
from recording import LEDGER, event, metadata, record

ADDRESS = "bob@example.com"


def recorded(tx, **fields):
    """Record one bounce, and return its metadata without what every event has."""
    record(tx.connection, event(None, "bounced", **fields))
    return {name: value for name, value in metadata(tx).items() if name not in ("provider", "provider_event_id")}


@pytest.mark.parametrize("bounce", ["hard", "soft"])
def test_what_a_bounce_was_is_kept_in_the_metadata(tx, bounce):
    """Under the names of the fields, even with `strict`, which would take a Message-ID for an address."""
    fields = {"bounce": bounce, "smtp_status": "550 5.1.1", "smtp_message_id": "<a@b.example>"}
    record(tx.connection, event(None, "bounced", **fields), strict=True)
    assert metadata(tx).items() >= fields.items()


def test_an_event_that_says_nothing_of_it_has_no_such_names(tx):
    """A row is no larger than it was."""
    assert recorded(tx) == {"message_id": None}


def test_of_a_longer_reply_only_the_codes_are_kept(tx):
    """In the field as in metadata: the text may hold an address. One without codes costs no event."""
    assert recorded(tx, smtp_status=f"550 5.1.1 <{ADDRESS}>: unknown")["smtp_status"] == "550 5.1.1"


@pytest.mark.parametrize(("reply", "kept"), [(f"550-5.1.1 <{ADDRESS}>", "550 5.1.1"), (550, "550"), (ADDRESS, None)])
def test_a_reply_in_the_caller_s_metadata_is_read_as_one(tx, reply, kept):
    """What is no reply is left out."""
    assert recorded(tx, metadata={"smtp_status": reply}).get("smtp_status") == kept


@pytest.mark.parametrize(("field", "kept"), [(None, "soft"), ("hard", "hard"), ("soft", "soft")])
def test_a_bounce_in_the_caller_s_metadata_counts_where_the_field_is_none(tx, field, kept):
    """The field comes first."""
    assert recorded(tx, bounce=field, metadata={"bounce": "soft"})["bounce"] == kept


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
    """A handler that suppresses on `hard` must not meet another word; the value is not repeated."""
    with pytest.raises(InvalidEventError) as caught:
        record(tx.connection, event(), event("m-2", **fields))
    assert str(caught.value).startswith("events[1].")
    assert reason in str(caught.value)
    assert ADDRESS not in str(caught.value)
    assert tx.value(LEDGER) == 0


def test_an_event_that_was_recorded_without_them_is_the_same_event_with_them(tx):
    """A provider that repeats a webhook after an upgrade of its reader; in one call, they tell events apart."""
    before, after = event("m-1", "bounced"), event("m-1", "bounced", bounce="hard", smtp_status="550")
    record(tx.connection, before)
    assert record(tx.connection, after)[0].event_id is None
    assert [one.event_id is None for one in record(tx.connection, after, before)] == [True, False]
    assert tx.value(LEDGER) == 2
