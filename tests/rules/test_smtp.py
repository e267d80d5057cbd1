"""The codes of an SMTP reply, and nothing else of it; `tests/webhooks/test_smtp_status.py` has replies of providers."""

import pytest

from mailglass_reconcile.rules.smtp import smtp_status


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("550 5.1.1", "550 5.1.1"),
        ("550 5.1.1 <ada@example.com>: Recipient address rejected", "550 5.1.1"),
        ("smtp;550 #5.1.0 Address rejected", "550 5.1.0"),
        ("5.1.1", "5.1.1"),
        ("(550, b'5.7.1 blocked')", "550"),
        (421, "421"),
    ],
)
def test_the_codes_at_the_beginning_of_a_reply_are_kept(reply, kept):
    """The reply code, the enhanced status code, or both; what is kept is read the same again."""
    assert smtp_status(reply) == smtp_status(kept) == kept


@pytest.mark.parametrize("reply", ["ada@example.com", "650 5.1.1", "5\u0663\u0660", 7, 5.5, ["550"], b"550"])
def test_what_does_not_begin_with_a_code_has_none(reply):
    """Neither a text, digits of another script, nor another kind of value."""
    assert smtp_status(reply) is None
