"""What can be an id at all, and what is known of an event that names none."""

import pytest

from mailglass_reconcile.rules import matching
from mailglass_reconcile.rules.matching import Document


@pytest.mark.parametrize("text", ["\0", "\t", "\n", "\x1b", "\x7f", "\x85", "\x9f", "\ud800"])
def test_a_text_with_a_control_character_is_no_id(text):
    """Neither as a whole nor in its middle: nothing sends such ids, and a terminal or a database would obey them."""
    assert not matching.is_usable(text)
    assert not matching.is_usable(f"before{text}after")


@pytest.mark.parametrize("text", ["a b", "é", "日本", "a\u200db", "a\u00a0b", "x" * 512])
def test_a_text_that_is_merely_unusual_is_an_id(text):
    """Other invisible characters do no harm: blanks, joiners, and up to 512 characters."""
    assert matching.is_usable(text)


@pytest.mark.parametrize("text", ["", "x" * 513])
def test_an_id_has_1_to_512_characters(text):
    """Longer ones never leave the database whole."""
    assert not matching.is_usable(text)


@pytest.mark.parametrize("message_id", [None, ""])
def test_an_event_without_a_message_id_has_no_candidates_and_keeps_what_else_is_known(message_id):
    """Its provider and its recipient; it is unmatchable, and does not name a delivery called `None`."""
    event = {"provider": "postmark", "message_id": message_id, "recipient": "ada@example.com"}
    found = matching.keys_of(Document(event))
    assert (found.provider, tuple(found.candidate_ids), found.recipient) == ("postmark", (), "ada@example.com")
