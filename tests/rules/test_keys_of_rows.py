"""Keys as a whole: from an event's metadata, without a usable recipient, and from a rule that fails."""

import pytest

from mailglass_reconcile.rules import matching, providers
from mailglass_reconcile.rules.matching import Document, Keys

SENDGRID = {"provider": "SendGrid", "sg_message_id": "evEK_IhZSlKus235aGfxIQ.recvd-1-2.0", "email": "Ada@Example.com"}
IDS = ("evEK_IhZSlKus235aGfxIQ", "evEK_IhZSlKus235aGfxIQ.recvd-1-2.0")
MARK = providers.rule_of("sendgrid").mark
ANY = providers.rule_of(providers.ANY_PROVIDER).mark


@pytest.fixture
def rules(monkeypatch):
    """Let a test register rules that are gone after it."""
    monkeypatch.setattr(providers, "_rules", dict(providers._rules))


def test_the_keys_of_metadata_are_those_that_a_sweep_computes_from_the_row():
    """Provider, ids in order, recipient from `email`, and the mark of the rule."""
    assert matching.keys_of(Document(SENDGRID)) == Keys("sendgrid", IDS, "ada@example.com", MARK)


@pytest.mark.parametrize(("flag", "lost"), [(True, True), (False, False), ("true", False), (None, False)])
def test_a_recipient_that_was_known_and_is_gone_is_lost(flag, lost):
    """By the flag alone, and only if no recipient is there."""
    found = matching.keys_of(Document(SENDGRID | {"email": None, "recipient_known": flag}))
    assert (found.recipient, found.lost) == (None, lost)
    assert not matching.keys_of(Document(SENDGRID | {"recipient_known": flag})).lost


@pytest.mark.parametrize("name", ["recipient", "email"])
def test_a_number_is_no_recipient(name):
    """Neither under the first name nor under the second."""
    assert matching.keys_of(Document(SENDGRID | {"email": None, name: 7})).recipient is None


def test_a_number_is_an_id_and_a_boolean_or_a_list_is_none():
    """Mandrill and others send numbers."""
    found = [matching.keys_of(Document({"provider": "other", "message_id": one})) for one in (7, True, [7], 7.5)]
    assert [one.candidate_ids for one in found] == [("7",), (), (), ()]


def test_an_id_may_be_nested_and_is_looked_for_in_its_own_column(rules):
    """Another column's value, or one below something that is no object, is not there."""
    providers.key_rule("acme", reads=("metadata/a/b", "normalized_payload/c"))(lambda a, c: [a, c])
    nested = {"provider": "acme", "a": {"b": "x"}, "c": "y"}
    assert matching.keys_of(Document(nested)).candidate_ids == ("x",)
    assert matching.keys_of(Document(nested | {"a": "b"})).candidate_ids == ()


@pytest.mark.parametrize("provider", [*providers.known(), "other", "acme"])
def test_the_id_over_smtp_is_the_last_candidate_of_every_provider(rules, provider):
    """With and without angle brackets, after the provider's own id; an adopter's rule need not read it."""
    providers.key_rule("acme", reads=("metadata/number",))(lambda number: [number])
    own = matching.keys_of(Document({"provider": provider, providers.stored_under(provider): "7"})).candidate_ids
    both = {"provider": provider, providers.stored_under(provider): "7", "smtp_message_id": "<a@b.example>"}
    assert matching.keys_of(Document(both)).candidate_ids == (*own, "<a@b.example>", "a@b.example")
    alone = matching.keys_of(Document({"provider": provider, "smtp_message_id": "a@eu-west-1.amazonses.com"}))
    assert alone.candidate_ids == ("a@eu-west-1.amazonses.com", "<a@eu-west-1.amazonses.com>")


@pytest.mark.parametrize("known", [True, False])
def test_without_a_provider_there_are_no_ids_and_the_recipient_stays(known):
    """Marked with the rule of any provider; a recipient that was known and is gone is lost here too."""
    assert matching.keys_of(Document({"email": "ada@example.com"})) == Keys(None, (), "ada@example.com", ANY)
    assert matching.keys_of(Document({"recipient_known": known})) == Keys(None, (), None, ANY, known)


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
    """Nothing may be stored, and what is known of the recipient is still known."""

    @providers.key_rule("acme", reads=("metadata/a",), version=3)
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
    """Nine values, the version 0 and one of ten digits are refused, each with its reason."""
    paths = tuple(f"metadata/{number}" for number in range(9))
    providers.key_rule("acme", reads=paths[:8], version=10**9 - 1)
    with pytest.raises(ValueError, match="a rule reads at most 8 values, not 9"):
        providers.key_rule("acme", reads=paths)
    for version in (0, 10**9):
        with pytest.raises(ValueError, match=r"^the version of a rule is 1 or more$"):
            providers.key_rule("acme", reads=paths[:1], version=version)


def test_writers_store_an_id_under_the_first_flat_name_that_the_rule_reads():
    """SendGrid's under its own; a provider without a rule, under `message_id`."""
    stored = [providers.stored_under(name) for name in ("sendgrid", "postmark", "mailgun", "nobody")]
    assert stored[:2] == ["sg_message_id", "message_id"]
    assert stored[3] == "message_id"
