"""Addresses of recipients: one way to store them, one to compare them, and the key by which they are found."""

import pytest

from mailglass_reconcile.rules.addresses import (
    contains_recipient,
    is_exact,
    make_index_key,
    normalize_address,
    search_fragment,
    strip_display_name,
)
from spellings import DIFFERENT, EQUAL


@pytest.mark.parametrize("spellings", EQUAL.values(), ids=EQUAL)
def test_spellings_of_one_recipient_compare_as_equal(spellings):
    """And once more, if what was compared is compared again."""
    one, other = map(normalize_address, spellings)
    assert one == other == normalize_address(one)
    assert make_index_key(one) == make_index_key(other)


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_different_recipients_compare_as_different(pair):
    """A wrong link is worse than a late one."""
    assert len(set(map(normalize_address, pair))) == 2


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
    assert strip_display_name(given) == stored
    assert normalize_address(stored) == normalize_address(given)


@pytest.mark.parametrize(
    ("recipient", "key", "exact"),
    [
        ("Ada@Example.com", "ada@example.com", True),
        ("a da@example.com", "", False),
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
    """The key of any other address is what all its spellings share."""
    assert make_index_key(normalize_address(recipient)) == key
    assert is_exact(key) is exact


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ('{"to": "Ada Lovelace <ADA@Bücher.example>"}', True),
        ("mailto:ada@xn--bcher-kva.example.", True),
        ("https://example.com/?e=ada%40b%C3%BCcher.example&x=1", True),
        ("jada@bücher.example", False),
        ("ada@bücher.example.org", False),
        ("ada+1@bücher.example, x-ada@bücher.example, ada@bücher.example-2", False),
        ("", False),
    ],
)
def test_a_text_names_an_address_in_any_spelling_and_no_longer_one(text, there):
    """However long the text around it is."""
    for spelling in ("ada@bücher.example", "ADA@XN--bcher-kva.example"):
        assert contains_recipient(text, normalize_address(spelling)) is there


def test_the_rough_part_of_an_address_is_in_every_spelling():
    """Letters and digits of ASCII in lower case, which no encoding changes."""
    result = [
        search_fragment(normalize_address(word))
        for word in ("Ada.Lovelace+1@Example.com", "é.x@bücher.example", "é@x.org")
    ]
    assert result == ["lovelace", "x", ""]
