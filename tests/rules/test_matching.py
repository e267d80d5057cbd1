"""Candidate ids, from values to spellings, without a database."""

import pytest

from mailglass_reconcile.rules import matching, providers
from mailglass_reconcile.rules.matching import Document

GUID = "883953f4-6105-42a2-a16a-77a8eac79483"


def candidates(provider, *, recipient=None, email=None, **values):
    """Return an event's keys, its rule's own values given by path with `/` and `-` written as `__` and `_`."""
    paths = matching.reads_of(providers.canonical(provider))
    known = {path.replace("/", "__").replace("-", "_"): path for path in paths}
    assert set(values) <= set(known)
    document = Document({"provider": provider, "recipient": recipient, "email": email}, {})
    for name, value in values.items():
        column, *keys, last = known[name].split("/")
        place = getattr(document, column)
        for key in keys:
            place = place.setdefault(key, {})
        place[last] = value
    return matching.keys_of(document)


REAL_SENDGRID_IDS = [
    ("evEK_IhZSlKus235aGfxIQ.filter0361p1las1-11880-5978131E-23.0", "evEK_IhZSlKus235aGfxIQ"),
    ("tC4LGVjZTgi116GN5ZRO6Q.filterdrecv-p3iad2-5dc87598f5-bvh7w-20-5FB44F45-3E.0", "tC4LGVjZTgi116GN5ZRO6Q"),
    ("yW5utel5TYuIBREiXJi7aA.recvd-5f9ffdf494-9kc6l-1-673C6EB0-B.0", "yW5utel5TYuIBREiXJi7aA"),
    ("5lFl7Fr1Rjme_EyzNNB_5A.stfilter-015.5185.55F883172.0", "5lFl7Fr1Rjme_EyzNNB_5A"),
    ("14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0", "14c5d75ce93.dfd.64b469"),
    ("evEK_IhZSlKus235aGfxIQ.a-relay-of-tomorrow.0", "evEK_IhZSlKus235aGfxIQ"),
    ("evEK_IhZSlKus235aGfxIQ", "evEK_IhZSlKus235aGfxIQ"),
    ("filterAAAAAAAAAAAAAAAA", "filterAAAAAAAAAAAAAAAA"),
]


@pytest.mark.parametrize(("webhook", "sent"), REAL_SENDGRID_IDS)
def test_a_relay_suffix_is_cut(webhook, sent):
    """The id of the send answer comes first, whatever relay the message went through."""
    assert candidates("sendgrid", metadata__sg_message_id=webhook).candidate_ids[0] == sent


def test_a_relay_without_an_id_is_no_key():
    """Some dropped events carry the relay's part alone."""
    relay = "filter0093p1las1.9128.5717FB8127.0"
    assert candidates("sendgrid", metadata__sg_message_id=relay).candidate_ids == ()


def test_a_uuid_is_tried_in_both_cases_and_as_written():
    """Nothing but a UUID is ever folded."""
    mixed = GUID[:18] + GUID[18:].upper()
    assert candidates("postmark", metadata__message_id=mixed).candidate_ids == (mixed, GUID, GUID.upper())
    assert candidates("postmark", metadata__message_id="Abc").candidate_ids == ("Abc",)


def test_angle_brackets_are_tried_with_and_without():
    """As written first."""
    bare, bracketed = "1@example.com", "<1@example.com>"
    assert candidates("mailgun", metadata__message_id=bare).candidate_ids == (bare, bracketed)
    assert candidates("mailgun", metadata__message_id=bracketed).candidate_ids == (bracketed, bare)


def test_a_bracketed_uuid_is_tried_in_all_its_spellings():
    """Three cases, each with brackets and without."""
    found = candidates("any", metadata__message_id=f"<{GUID.upper()}>").candidate_ids
    assert set(found) == {GUID, GUID.upper(), f"<{GUID}>", f"<{GUID.upper()}>"}
    assert len(found) == 4


@pytest.mark.parametrize("character", ["\x01", "\n", "\t", "\x1f", "\x7f", "\x85", "\x9f"])
def test_an_id_with_a_control_character_inside_is_no_key(character):
    """Control characters of both blocks."""
    assert candidates("any", metadata__message_id=f"a{character}b").candidate_ids == ()


def test_an_id_is_trimmed():
    """Blanks, tabs and line ends around it."""
    assert candidates("any", metadata__message_id=" \t one\r\n").candidate_ids == ("one",)


@pytest.mark.parametrize("text", ["é", "日本", "a b", "x" * 512])
def test_any_other_text_of_at_most_512_characters_is_a_key(text):
    """Letters of any script, blanks inside."""
    assert candidates("any", metadata__message_id=text).candidate_ids == (text,)


@pytest.mark.parametrize(
    "value",
    ["", "   ", "x" * 513, {}, [], True, None],
)
def test_anything_else_is_no_key(value):
    """Too long is not cut, and what is no text has no text."""
    assert candidates("any", metadata__message_id=value).candidate_ids == ()


def test_a_spelling_that_brackets_would_make_too_long_is_left_out():
    """512 characters with an @ have no bracketed twin."""
    text = "a@" + "x" * 510
    assert candidates("any", metadata__message_id=text).candidate_ids == (text,)


def test_an_integer_is_its_digits():
    """Beyond 2^53, digit by digit."""
    assert candidates("mailjet", metadata__MessageID=1152921509114107599).candidate_ids == ("1152921509114107599",)


@pytest.mark.parametrize("value", [1.0, 1.5, -1, float("inf")])
def test_a_number_that_is_no_integer_is_no_key(value):
    """A fraction, a sign, or beyond all numbers."""
    assert candidates("any", metadata__message_id=value).candidate_ids == ()


def test_provider_message_id_is_tried_before_a_providers_own_name():
    """In metadata first, then in normalized_payload."""
    found = candidates(
        "postmark",
        metadata__message_id="third",
        metadata__provider_message_id="first",
        normalized_payload__provider_message_id="second",
    )
    assert found.candidate_ids == ("first", "second", "third")


@pytest.mark.parametrize("provider", [None, "", 1, " ", {}, "a\x01b"])
def test_an_event_without_a_provider_has_no_key(provider):
    """Whatever else it holds."""
    assert matching.keys_of(Document({"provider": provider, "message_id": "one"})).candidate_ids == ()


def test_a_providers_name_is_compared_without_regard_to_case():
    """`PostMark` is `postmark`, and the keys say so."""
    found = candidates("PostMark", metadata__message_id="one")
    assert found[:2] == ("postmark", ("one",))


@pytest.mark.parametrize(
    ("recipient", "email", "known"),
    [
        ("a@x", "b@x", "a@x"),
        (None, " b@x ", "b@x"),
        ([], None, None),
        ("", "b@x", "b@x"),
        (1, None, None),
    ],
)
def test_the_recipient_is_recipient_or_email(recipient, email, known):
    """The first that is a text."""
    assert candidates("any", recipient=recipient, email=email).recipient == known


@pytest.fixture
def rules(monkeypatch):
    """Let a test register rules that are gone after it."""
    monkeypatch.setattr(providers, "_rules", dict(providers._rules))


@pytest.mark.usefixtures("rules")
def test_an_adopters_rule_is_used_for_its_provider_alone():
    """Registered under two names, it gets one argument per path."""

    @providers.key_rule("Acme Mail", "acme", reads=("metadata/a/b", "normalized_payload/c"))
    def acme(a, c):
        """Join two values."""
        return [f"{a}-{c}", None, ""]

    assert matching.reads_of("acme mail") == (
        *matching.COMMON_READS,
        "metadata/a/b",
        "normalized_payload/c",
        "metadata/message_id",
        "metadata/smtp_message_id",
    )
    assert candidates("ACME", metadata__a__b="x", normalized_payload__c=7).candidate_ids == ("x-7",)
    assert candidates("other", metadata__message_id="x").candidate_ids == ("x",)


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("answer", [ValueError, [7], 7, None, [b"x"], "text", ["id"] * 1_000_000])
def test_an_adopters_rule_that_fails_costs_that_event_only(answer):
    """It raises, or returns what are no ids; the reason names the rule and no value, and nothing may be stored."""

    @providers.key_rule("acme", reads=("metadata/a",))
    def acme(a):
        """Fail."""
        if answer is ValueError:
            raise ValueError(a)
        return answer

    found = candidates("acme", metadata__a="secret")
    assert (found.candidate_ids, found.rule) == ((), None)
    assert found.failure.startswith("the key rule acme/2.own1 ")
    assert "secret" not in found.failure


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("path", ["message_id", "metadata", "metadata/", "recipient/x"])
def test_a_path_outside_the_two_columns_is_refused(path):
    """When it is registered, not when it is read."""
    with pytest.raises(ValueError, match="a read is"):
        providers.key_rule("acme", reads=(path,))
