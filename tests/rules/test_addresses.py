"""Addresses of recipients: one way to store them, one to compare them, and the key by which they are found."""

import pytest

from mailglass_reconcile.rules.addresses import address, bare, index_key, is_exact
from spellings import DIFFERENT, SAME


@pytest.mark.parametrize("spellings", SAME.values(), ids=SAME)
def test_spellings_of_one_recipient_compare_as_equal(spellings):
    """And once more, if what was compared is compared again."""
    one, other = map(address, spellings)
    assert one == other == address(one)
    assert index_key(one) == index_key(other)


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_different_recipients_compare_as_different(pair):
    """A wrong link is worse than a late one."""
    assert len(set(map(address, pair))) == 2


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (" Ada <Ada@Example.com> ", "Ada@Example.com"),
        ("a\tb@example.com", "a b@example.com"),
        ("a\x00b\x9f@example.com", "a\ufffdb\ufffd@example.com"),
        ("", ""),
    ],
)
def test_what_is_stored_is_the_address_alone(given, stored):
    """In its own case, and without control characters."""
    assert bare(given) == stored
    assert address(stored) == address(given)


@pytest.mark.parametrize(
    ("recipient", "key", "exact"),
    [
        ("Ada@Example.com", "ada@example.com", True),
        ("a da@example.com", "ada@example.com", True),
        ("ada@bücher.example", "ada@", False),
        ("ada@xn--bcher-kva.example", "ada@", False),
        ("ada@mail.xn--bcher-kva.example", "ada@", False),
        ('"a@b"@example.com', '"a@', False),
        ("ärger@example.com", "", False),
        ("postmaster", "", False),
        ("", "", False),
    ],
)
def test_the_key_of_an_ascii_address_is_the_address(recipient, key, exact):
    """Of others it is what all their spellings share."""
    assert index_key(address(recipient)) == key
    assert is_exact(key) is exact
