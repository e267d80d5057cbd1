"""Recipients' addresses: their stored form, their normalized form, and their index key."""

import time
import timeit

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

ADA = "ada@example.com"


@pytest.mark.parametrize("spellings", EQUAL.values(), ids=EQUAL)
def test_spellings_of_one_recipient_compare_as_equal(spellings):
    """Normalizing twice changes nothing."""
    first, second = map(normalize_address, spellings)
    assert first == second == normalize_address(first)
    assert make_index_key(first) == make_index_key(second)


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_different_recipients_compare_as_different(pair):
    """A wrong link is worse than a late one."""
    assert len(set(map(normalize_address, pair))) == 2


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (" Ada <Ada@Example.com> ", "Ada@Example.com"),
        ("a\tb@example.com", "a b@example.com"),
        ("a\x00b\x9f@example.com", "a\ufffdb\ufffd@example.com"),
        ("", ""),
    ],
)
def test_the_stored_form_is_the_address_alone(text, stored):
    """It keeps its case and has no control characters."""
    assert strip_display_name(text) == stored
    assert normalize_address(stored) == normalize_address(text)


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
    """Other addresses have a key that all their spellings share."""
    assert make_index_key(normalize_address(recipient)) == key
    assert is_exact(key) is exact


@pytest.mark.parametrize(
    ("text", "is_named"),
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
def test_a_text_names_an_address_in_any_spelling_and_no_longer_one(text, is_named):
    """The text around it may be long."""
    for spelling in ("ada@bücher.example", "ADA@XN--bcher-kva.example"):
        assert contains_recipient(text, normalize_address(spelling)) is is_named


def test_the_rough_part_of_an_address_is_in_every_spelling():
    """It is the ASCII letters and digits in lower case, which no encoding changes."""
    result = [
        search_fragment(normalize_address(word))
        for word in ("Ada.Lovelace+1@Example.com", "é.x@bücher.example", "é@x.org")
    ]
    assert result == ["lovelace", "x", ""]


def test_a_search_in_a_text_of_backslashes_is_linear():
    """JSON in JSON in JSON has runs of them."""
    seconds = [
        min(timeit.repeat(lambda text=text: contains_recipient(text, ADA), time.process_time, number=1, repeat=3))
        for text in ("\\" * 1_000, "\\" * 8_000)
    ]
    assert seconds[1] < 24 * seconds[0]
    assert contains_recipient("\\" * 7 + "u0061da@example.com", ADA)
