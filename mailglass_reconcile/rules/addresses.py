"""E-mail addresses: how a recipient is stored, compared and indexed, and which texts look like an address."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from urllib.parse import unquote

_IN_BRACKETS = re.compile(r"<([^<>]*)>\Z")
_BREAKS = re.compile(r"[\t-\r\x1c-\x1f\x85]")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ADDRESS = re.compile(r"\S(?:@|%40)\S")

_ESCAPE = re.compile(r"\\+(?:u([0-9A-Fa-f]{4})|[bfnrt])")
"""What JSON writes for a character; with more backslashes in a document that is a string of another one."""

_LOOKALIKES = "\u037e\u1fef\u212a"
"""Characters outside ASCII that NFC or lower case would turn into `;`, a backtick and `k`: they stay as they are."""

# An ASCII address whole; of one with another domain, or with an A-label in it, the local part; of others nothing.
INDEXED = "^[!-;=?A-~]+@(?:(?!.*xn--)[!-;=?A-~]+$)?"
"""What the index has of a compared address: a regular expression that Python and Postgres read alike."""

ERASED_DOMAIN = "erased.invalid"
"""Of the recipients that stand where an address was erased; no mail can be sent to it (RFC 2606)."""
ERASED = f"@{ERASED_DOMAIN}"
"""The end of each of them."""


def bare(recipient: str) -> str:
    """Return a recipient as our writers store it: without display name and surrounding white space.

    Line breaks and tabs inside become spaces, other control characters U+FFFD.
    """
    text = recipient.strip()
    inner = _IN_BRACKETS.search(text)
    return _CONTROLS.sub("\ufffd", _BREAKS.sub(" ", inner[1].strip() if inner else text))


def address(recipient: str) -> str:
    """Return a recipient as it is compared: bare, lower case, in Unicode's form NFC, and the domain as an A-label.

    A domain that has no A-label, such as one with an emoji, is compared as it is.
    """
    text = bare(recipient)
    local, at, domain = text.rpartition("@")
    return f"{_lower(local)}@{_a_label(domain)}" if at else _lower(text)


def holds_address(text: str) -> bool:
    """Whether *text* looks like an e-mail address, or holds one."""
    return ("@" in text or "%40" in text) and _ADDRESS.search(text) is not None


def mentions(text: str, compared: str) -> bool:
    """Whether *text* holds the address that compares as *compared*, in any spelling.

    Percent-encoded, and after an escape of JSON, of a document inside a document too.
    """
    local, _, domain = compared.rpartition("@")
    spellings = {compared, f"{local}@{_u_label(domain)}"}
    pattern = "|".join(re.escape(_lower(one)) for one in spellings)
    found = re.compile(rf"(?<![\w.+-])(?:{pattern})(?![\w-]|\.\w)")
    return any(found.search(_lower(one)) for each in (text, _unescaped(text)) for one in (each, unquote(each)))


def rough_part(compared: str) -> str:
    """Return what every spelling of an address has in lower case, encoded or not: a part of what is before its `@`."""
    runs = re.findall("[a-z0-9]+", compared.rpartition("@")[0])
    return max(runs, key=len, default="")


def index_key(compared: str) -> str:
    """Return what `recipient_key.sql` hashes of each recipient that compares as *compared*.

    Different addresses may have the same key, unless `is_exact` of it.
    """
    found = re.match(INDEXED, compared)
    return found[0] if found else ""


def is_exact(key: str) -> bool:
    """Whether an `index_key` is a whole address, and not only a part of several."""
    return key[-1:] not in ("", "@")


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else " ", text)


def _lower(text: str) -> str:
    if text.isascii():
        return text.lower()
    return "".join(piece if piece in _LOOKALIKES else _folded(piece) for piece in re.split(f"([{_LOOKALIKES}])", text))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())


@lru_cache(maxsize=1_000)
def _a_label(domain: str) -> str:
    lowered = _lower(domain)
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
