"""E-mail addresses: normalize, compare and index recipients, and recognize addresses in texts."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from urllib.parse import unquote

_IN_BRACKETS = re.compile(r"<([^<>]*)>\Z")
_BREAKS = re.compile(r"[\t-\r\x1c-\x1f\x85]")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ADDRESS = re.compile(r"\S(?:@|%40)\S")

_ESCAPE = re.compile(r"(?<!\\)\\++(?:u([0-9A-Fa-f]{4})|[bfnrt])")
"""JSON's escape of a character, with more backslashes in a document that is a string inside another document.

A run of backslashes is read once, from its beginning.
"""

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"')
_NOT_SINGLE = re.compile(r"[\s,;<>\ufffd]|@.*@")

_LOOKALIKES = "\u037e\u1fef\u212a"
"""Characters outside ASCII that NFC or lower case would turn into `;`, a backtick and `k`: they are not normalized."""

# Matches a whole ASCII address; the local part if the domain is another one or has an A-label; else nothing.
INDEXED = "^[!-;=?A-~]+@(?:(?!.*xn--)[!-;=?A-~]+$)?"
"""The indexed part of a normalized address: a regular expression with the same meaning in Python and Postgres."""

ERASED_DOMAIN = "erased.invalid"
"""The domain of the placeholders for erased addresses; no mail can be sent to it (RFC 2606)."""
ERASED = f"@{ERASED_DOMAIN}"
"""The end of each placeholder."""


def strip_display_name(recipient: str) -> str:
    """Return a recipient without display name and surrounding white space, as our writers store it.

    Line breaks and tabs inside become spaces, other control characters U+FFFD.
    """
    text = recipient.strip()
    inner = _IN_BRACKETS.search(text)
    return _CONTROLS.sub("\ufffd", _BREAKS.sub(" ", inner[1].strip() if inner else text))


def normalize_address(recipient: str) -> str:
    """Return a recipient in its normal form, by which addresses are compared.

    That is without display name, in lower case and NFC, with the domain as an A-label. A domain without an A-label,
    such as one with an emoji, is not converted.
    """
    text = strip_display_name(recipient)
    local, at, domain = text.rpartition("@")
    return f"{_lower_nfc(local)}@{_a_label(domain)}" if at else _lower_nfc(text)


def is_single(address: str) -> bool:
    """Return True if *address*, without a display name, is one address that was stored whole.

    Without quotes it has no white space, separator or bracket, no second `@`, and no replaced character.
    """
    return _NOT_SINGLE.search(_QUOTED.sub("", address)) is None


def contains_address(text: str) -> bool:
    """Return True if *text* is or contains an e-mail address."""
    return ("@" in text or "%40" in text) and _ADDRESS.search(text) is not None


def contains_recipient(text: str, normalized: str) -> bool:
    """Return True if *text* contains the address with the normal form *normalized*, in any spelling.

    It may be percent-encoded, or inside a JSON document, or inside a document in a string of another one.
    """
    local, _, domain = normalized.rpartition("@")
    spellings = {normalized, f"{local}@{_u_label(domain)}"}
    alternatives = "|".join(re.escape(_lower_nfc(spelling)) for spelling in spellings)
    pattern = re.compile(rf"(?<![\w.+-])(?:{alternatives})(?![\w-]|\.\w)")
    unescaped = _unescape_json(text)
    return any(pattern.search(_lower_nfc(form)) for form in (text, unquote(text), unescaped, unquote(unescaped)))


def search_fragment(normalized: str) -> str:
    """Return the longest alphanumeric part of an address's local part: every spelling has it in lower case."""
    runs = re.findall("[a-z0-9]+", normalized.rpartition("@")[0])
    return max(runs, key=len, default="")


def make_index_key(normalized: str) -> str:
    """Return the text that `recipient_key.sql` hashes for each recipient with the normal form *normalized*.

    Different addresses may share a key, unless it `is_exact`.
    """
    match = re.match(INDEXED, normalized)
    return match[0] if match else ""


def is_exact(key: str) -> bool:
    """Return True if an index key is a whole address, which no other address shares."""
    return key[-1:] not in ("", "@")


def _unescape_json(text: str) -> str:
    return _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else " ", text)


def _lower_nfc(text: str) -> str:
    if text.isascii():
        return text.lower()
    return "".join(piece if piece in _LOOKALIKES else _fold(piece) for piece in re.split(f"([{_LOOKALIKES}])", text))


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())


@lru_cache(maxsize=1_000)
def _a_label(domain: str) -> str:
    lowered = _lower_nfc(domain)
    if lowered.isascii():
        return lowered
    import idna  # noqa: PLC0415 - takes 10 ms, and few domains need it

    try:
        encoded = idna.encode(lowered).decode("ascii")
    except UnicodeError:
        return lowered
    return encoded if "xn--" in encoded else lowered


def _u_label(domain: str) -> str:
    if "xn--" not in domain:
        return domain
    import idna  # noqa: PLC0415 - as above

    try:
        return idna.decode(domain)
    except UnicodeError:
        return domain
