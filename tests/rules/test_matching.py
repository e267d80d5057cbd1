"""Candidate ids: which values are ids, their spellings, where they are read, and rules that fail."""

import pytest

from mailglass_reconcile.rules import matching, provider_rules
from mailglass_reconcile.rules.matching import MOST_COMPARED, DeliveryRow, Document, Keys, MatchResult

pytestmark = pytest.mark.version_independent

GUID = "883953f4-6105-42a2-a16a-77a8eac79483"


def candidates(provider, *, recipient=None, email=None, **values):
    """Return an event's keys; values of its rule are given by path, with `/` and `-` as `__` and `_`."""
    paths = provider_rules.rule_of(provider_rules.canonical(provider)).paths
    paths_by_name = {"__".join(path).replace("-", "_"): path for path in paths}
    assert set(values) <= set(paths_by_name)
    document = Document({"provider": provider, "recipient": recipient, "email": email}, {})
    for name, value in values.items():
        column, *keys, last = paths_by_name[name]
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
    """The id of the send comes first, whatever relay the message passed."""
    assert candidates("sendgrid", metadata__sg_message_id=webhook).candidate_ids[0] == sent


def test_a_relay_without_an_id_is_no_key():
    """Some dropped events have the relay's part only."""
    relay = "filter0093p1las1.9128.5717FB8127.0"
    assert candidates("sendgrid", metadata__sg_message_id=relay).candidate_ids == ()


def test_a_uuid_is_tried_in_both_cases_and_as_written():
    """Only UUIDs are folded."""
    mixed = GUID[:18] + GUID[18:].upper()
    assert candidates("postmark", metadata__message_id=mixed).candidate_ids == (mixed, GUID, GUID.upper())
    assert candidates("postmark", metadata__message_id="Abc").candidate_ids == ("Abc",)


def test_angle_brackets_are_tried_with_and_without():
    """The given form comes first."""
    bare, bracketed = "1@example.com", "<1@example.com>"
    assert candidates("mailgun", metadata__message_id=bare).candidate_ids == (bare, bracketed)
    assert candidates("mailgun", metadata__message_id=bracketed).candidate_ids == (bracketed, bare)


def test_a_bracketed_uuid_is_tried_in_all_its_spellings():
    """Three cases are tried, each with and without brackets."""
    candidate_ids = candidates("any", metadata__message_id=f"<{GUID.upper()}>").candidate_ids
    assert set(candidate_ids) == {GUID, GUID.upper(), f"<{GUID}>", f"<{GUID.upper()}>"}
    assert len(candidate_ids) == 4


@pytest.mark.parametrize("character", ["\x01", "\n", "\t", "\x1f", "\x7f", "\x85", "\x9f"])
def test_an_id_with_a_control_character_inside_is_no_key(character):
    assert candidates("any", metadata__message_id=f"a{character}b").candidate_ids == ()


def test_an_id_is_trimmed():
    """Blanks, tabs and line breaks around it are removed."""
    assert candidates("any", metadata__message_id=" \t one\r\n").candidate_ids == ("one",)


@pytest.mark.parametrize("text", ["é", "日本", "a b", "x" * 512])
def test_any_other_text_of_at_most_512_characters_is_a_key(text):
    """Letters of any script and blanks within are allowed."""
    assert candidates("any", metadata__message_id=text).candidate_ids == (text,)


@pytest.mark.parametrize(
    "value",
    ["", "   ", "x" * 513, {}, [], True, None],
)
def test_anything_else_is_no_key(value):
    """A longer text is not cut, and another type is no text."""
    assert candidates("any", metadata__message_id=value).candidate_ids == ()


def test_a_spelling_that_brackets_would_make_too_long_is_left_out():
    """512 characters with an @ get no bracketed twin."""
    text = "a@" + "x" * 510
    assert candidates("any", metadata__message_id=text).candidate_ids == (text,)


def test_an_integer_is_its_digits():
    """This holds beyond 2^53."""
    assert candidates("mailjet", metadata__MessageID=1152921509114107599).candidate_ids == ("1152921509114107599",)


@pytest.mark.parametrize("value", [1.0, 1.5, -1, float("inf")])
def test_a_number_that_is_no_integer_is_no_key(value):
    """It is a fraction, has a sign, or is infinite."""
    assert candidates("any", metadata__message_id=value).candidate_ids == ()


def test_provider_message_id_is_tried_before_a_providers_own_name():
    """Metadata comes first, then normalized_payload."""
    result = candidates(
        "postmark",
        metadata__message_id="third",
        metadata__provider_message_id="first",
        normalized_payload__provider_message_id="second",
    )
    assert result.candidate_ids == ("first", "second", "third")


@pytest.mark.parametrize("provider", [None, "", 1, " ", {}, "a\x01b"])
def test_an_event_without_a_provider_has_no_key(provider):
    """Other values do not matter."""
    assert matching.keys_of(Document({"provider": provider, "message_id": "one"})).candidate_ids == ()


def test_a_providers_name_is_compared_without_regard_to_case():
    """`PostMark` is `postmark`, also in the keys."""
    result = candidates("PostMark", metadata__message_id="one")
    assert result[:2] == ("postmark", ("one",))


@pytest.mark.parametrize(
    ("recipient", "email", "expected"),
    [
        ("a@x", "b@x", "a@x"),
        (None, " b@x ", "b@x"),
        ([], None, None),
        ("", "b@x", "b@x"),
        (1, None, None),
    ],
)
def test_the_recipient_is_recipient_or_email(recipient, email, expected):
    """It is the first that is a text."""
    assert candidates("any", recipient=recipient, email=email).recipient == expected


@pytest.fixture
def rules(monkeypatch):
    """Let a test register rules, and remove them afterwards."""
    monkeypatch.setattr(provider_rules, "_rules", dict(provider_rules._rules))


@pytest.mark.usefixtures("rules")
def test_an_adopters_rule_is_used_for_its_provider_alone():
    """It has two names, and gets one argument per path."""

    @provider_rules.key_rule("Acme Mail", "acme", reads=("metadata/a/b", "normalized_payload/c"))
    def acme(a, c):
        """Join two values."""
        return [f"{a}-{c}", None, ""]

    assert tuple(map("/".join, provider_rules.rule_of("acme mail").paths)) == (
        *provider_rules.COMMON_READS,
        "metadata/a/b",
        "normalized_payload/c",
        "metadata/message_id",
        "metadata/smtp_message_id",
    )
    assert candidates("ACME", metadata__a__b="x", normalized_payload__c=7).candidate_ids == ("x-7",)
    assert candidates("other", metadata__message_id="x").candidate_ids == ("x",)


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("answer", [ValueError, [7], 7, None, [b"x"], "text", ["id"] * 1_000_000])
def test_an_adopters_rule_that_fails_affects_that_event_only(answer):
    """It raises or returns something else than ids; the reason has the rule and no value, and nothing is stored."""

    @provider_rules.key_rule("acme", reads=("metadata/a",))
    def acme(a):
        """Fail."""
        if answer is ValueError:
            raise ValueError(a)
        return answer

    result = candidates("acme", metadata__a="secret")
    assert (result.candidate_ids, result.rank) == ((), None)
    assert result.failure.startswith("the key rule acme/2.own1 ")
    assert "secret" not in result.failure


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("path", ["message_id", "metadata", "metadata/", "recipient/x"])
def test_a_path_outside_the_two_columns_is_refused(path):
    """It is refused at registration, not on reading."""
    with pytest.raises(ValueError, match="a read is"):
        provider_rules.key_rule("acme", reads=(path,))


@pytest.mark.parametrize("text", ["\0", "\t", "\n", "\x1b", "\x7f", "\x85", "\x9f", "\ud800"])
def test_a_text_with_a_control_character_is_no_id(text):
    """No provider sends such ids, and a terminal or a database would execute them."""
    assert not matching.is_usable(text)
    assert not matching.is_usable(f"before{text}after")


@pytest.mark.parametrize("text", ["a b", "é", "日本", "a\u200db", "a\u00a0b", "x" * 512])
def test_a_text_that_is_merely_unusual_is_an_id(text):
    """Other invisible characters, blanks and joiners are harmless, up to 512 characters."""
    assert matching.is_usable(text)


@pytest.mark.parametrize("text", ["", "x" * 513])
def test_an_id_has_1_to_512_characters(text):
    """Longer ones are never read whole."""
    assert not matching.is_usable(text)


@pytest.mark.parametrize("message_id", [None, ""])
def test_an_event_without_a_message_id_has_no_candidates_and_keeps_what_else_is_known(message_id):
    """It keeps provider and recipient, is unmatchable, and names no delivery called `None`."""
    event = {"provider": "postmark", "message_id": message_id, "recipient": "ada@example.com"}
    result = matching.keys_of(Document(event))
    assert (result.provider, tuple(result.candidate_ids), result.recipient) == ("postmark", (), "ada@example.com")


SENDGRID = {"provider": "SendGrid", "sg_message_id": "evEK_IhZSlKus235aGfxIQ.recvd-1-2.0", "email": "Ada@Example.com"}
IDS = ("evEK_IhZSlKus235aGfxIQ", "evEK_IhZSlKus235aGfxIQ.recvd-1-2.0")
RANK = provider_rules.rank_of("sendgrid")
ANY = provider_rules.rank_of(None)


def test_the_keys_of_metadata_are_those_that_a_sweep_computes_from_the_row():
    """Provider, ids in order, recipient from `email`, and the rule's rank agree."""
    assert matching.keys_of(Document(SENDGRID)) == Keys("sendgrid", IDS, "ada@example.com", RANK)


@pytest.mark.parametrize(("flag", "lost"), [(True, True), (False, False), ("true", False), (None, False)])
def test_a_recipient_that_was_known_and_is_gone_is_lost(flag, lost):
    """The flag says so, if there is no recipient."""
    result = matching.keys_of(Document(SENDGRID | {"email": None, "recipient_known": flag}))
    assert (result.recipient, result.lost) == (None, lost)
    assert not matching.keys_of(Document(SENDGRID | {"recipient_known": flag})).lost


@pytest.mark.parametrize("name", ["recipient", "email"])
def test_a_number_is_no_recipient(name):
    assert matching.keys_of(Document(SENDGRID | {"email": None, name: 7})).recipient is None


def test_a_number_is_an_id_and_a_boolean_or_a_list_is_none():
    """Mandrill and others send numbers."""
    values = (7, 0, True, [7], 7.5)
    result = [matching.keys_of(Document({"provider": "other", "message_id": value})) for value in values]
    assert [orphan.candidate_ids for orphan in result] == [("7",), ("0",), (), (), ()]


def test_an_id_may_be_nested_and_is_looked_for_in_its_own_column(rules):
    """A value in the other column, or below something that is no object, is not found."""
    provider_rules.key_rule("acme", reads=("metadata/a/b", "normalized_payload/c"))(lambda a, c: [a, c])
    nested = {"provider": "acme", "a": {"b": "x"}, "c": "y"}
    assert matching.keys_of(Document(nested)).candidate_ids == ("x",)
    assert matching.keys_of(Document(nested | {"a": "b"})).candidate_ids == ()


@pytest.mark.parametrize("provider", [*provider_rules.providers_with_rule(), "other", "acme"])
def test_the_id_over_smtp_is_the_last_candidate_of_every_provider(rules, provider):
    """It comes with and without brackets after the provider's own id; an adopter's rule need not read it."""
    provider_rules.key_rule("acme", reads=("metadata/number",))(lambda number: [number])
    metadata = {"provider": provider, provider_rules.rule_of(provider).stored_under: "7"}
    own = matching.keys_of(Document(metadata)).candidate_ids
    metadata["smtp_message_id"] = "<a@b.example>"
    assert matching.keys_of(Document(metadata)).candidate_ids == (*own, "<a@b.example>", "a@b.example")
    alone = matching.keys_of(Document({"provider": provider, "smtp_message_id": "a@eu-west-1.amazonses.com"}))
    assert alone.candidate_ids == ("a@eu-west-1.amazonses.com", "<a@eu-west-1.amazonses.com>")


@pytest.mark.parametrize("is_flagged", [True, False])
def test_without_a_provider_there_are_no_ids_and_the_recipient_stays(is_flagged):
    """The rank is that of the fallback rule; a missing recipient with the flag is lost here too."""
    assert matching.keys_of(Document({"email": "ada@example.com"})) == Keys(None, (), "ada@example.com", ANY)
    assert matching.keys_of(Document({"recipient_known": is_flagged})) == Keys(None, (), None, ANY, is_flagged)


ENDING = "; its events stay open until the rule is corrected"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ZeroDivisionError, "failed with ZeroDivisionError"),
        (7, "failed with TypeError"),
        ("id", "returned str instead of a list of ids"),
        ([7], "returned an id of type int instead of a string"),
        (["id"] * 33, "returned more than 32 ids"),
    ],
)
def test_a_rule_that_fails_leaves_provider_and_recipient_and_its_reason(rules, answer, reason):
    """Nothing is stored, and the recipient is still known."""

    @provider_rules.key_rule("acme", reads=("metadata/a",), version=3)
    def acme(a):
        """Fail."""
        if answer is ZeroDivisionError:
            raise answer
        return answer

    failure = f"the key rule acme/2.own3 {reason}{ENDING}"
    metadata = {"provider": "acme", "email": "ada@example.com"}
    assert matching.keys_of(Document(metadata)) == Keys("acme", (), "ada@example.com", None, False, failure)
    lost = matching.keys_of(Document({"provider": "acme", "recipient_known": True}))
    assert lost == Keys("acme", (), None, None, True, failure)


def test_a_rule_may_read_eight_values_and_have_any_version_from_one_up(rules):
    """Nine values, version 0 and one of ten digits are refused with a reason."""
    paths = tuple(f"metadata/{number}" for number in range(9))
    provider_rules.key_rule("acme", reads=paths[:8], version=10**9 - 1)
    with pytest.raises(ValueError, match="a rule reads at most 8 values, not 9"):
        provider_rules.key_rule("acme", reads=paths)
    for version in (0, 10**9):
        with pytest.raises(ValueError, match=r"^the version of a rule is 1 or more$"):
            provider_rules.key_rule("acme", reads=paths[:1], version=version)


def test_writers_store_an_id_under_the_first_flat_name_that_the_rule_reads():
    """SendGrid's has its own name; a provider without a rule has `message_id`."""
    stored = [provider_rules.rule_of(name).stored_under for name in ("sendgrid", "postmark", "mailgun", "nobody")]
    assert stored[:2] == ["sg_message_id", "message_id"]
    assert stored[3] == "message_id"


@pytest.mark.parametrize(("above", "is_current"), [(None, False), (-1, False), (0, True), (1, True)])
def test_keys_of_the_rules_rank_or_a_higher_one_are_current(above, is_current):
    """A process with a later version of the rule has stored the higher one."""
    rank = None if above is None else RANK + above
    assert Keys("sendgrid", ("m",), None, rank).is_current == is_current


ADA, BOB = "ada@example.com", "bob@example.com"


@pytest.mark.parametrize(
    ("recipient", "deliveries", "result"),
    [
        (None, [], ("unmatched", None)),
        (None, [("m1", "acme", None, ADA)], ("matched", "0")),
        (None, [("m1", "other", None, ADA)], ("tenant_mismatch", None)),
        (None, [("m1", "acme", "mailgun", ADA)], ("unmatched", None)),
        (None, [("m1", "other", None, ADA), ("m2", "acme", None, ADA)], ("matched", "1")),
        (None, [("m1", "acme", None, ADA), ("m1", "acme", None, BOB)], ("ambiguous", None)),
        (None, 2 * [("m1", "acme", None, ADA)] + [("m2", "acme", None, ADA)], ("ambiguous", None)),
        (BOB, [("m1", "acme", None, ADA), ("m1", "acme", None, BOB)], ("matched", "1")),
        (BOB, [("m1", "acme", None, ADA), ("m2", "acme", None, BOB)], ("recipient_mismatch", None)),
        (ADA, [("m1", "acme", None, ADA), ("m1", "acme", "postmark", ADA)], ("matched", "1")),
        (ADA, 2 * [("m1", "acme", "postmark", ADA)], ("ambiguous", None)),
        (BOB, (MOST_COMPARED - 1) * [("m1", "acme", None, ADA)] + [("m1", "acme", None, BOB)], ("matched", "999")),
        (BOB, MOST_COMPARED * [("m1", "acme", None, ADA)] + [("m1", "acme", None, BOB)], ("ambiguous", None)),
    ],
)
def test_the_first_id_that_names_deliveries_of_the_tenant_decides(recipient, deliveries, result):
    by_id = {"m1": [], "m2": []}
    for number, (id_, *columns) in enumerate(deliveries):
        by_id[id_].append(DeliveryRow(id_, str(number), *columns))
    assert matching.match("acme", Keys("postmark", ("m1", "m2"), recipient), by_id) == MatchResult(*result)


def test_an_event_whose_recipient_was_lost_is_ambiguous():
    """Another recipient may have had the same id."""
    keys = Keys("postmark", ("m1",), None, lost=True)
    assert matching.match("acme", keys, {"m1": [DeliveryRow("m1", "0", "acme", None, ADA)]}).state == "ambiguous"
