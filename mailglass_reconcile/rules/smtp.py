"""The codes of an SMTP server's reply; its text is never stored, because it may hold addresses."""

from __future__ import annotations

import re

_CODES = re.compile(
    r"[^\w]*(?:smtp;\s*)?([2-5]\d\d(?!\.?\d))?(?:[\s-]+\1(?!\.?\d))?[\s-]*#?([245]\.\d{1,3}\.\d{1,3}(?!\.?\d))?",
    re.IGNORECASE | re.ASCII,
)
"""A reply code (RFC 5321, 4.2) and an enhanced status code (RFC 3463, 2), each optional.

Several providers send the code by itself and again at the beginning of the text.
"""


_REPLY = (str, int)
"""A tuple, because `isinstance` with a union of types takes twice as long, for each event."""


def smtp_status(reply: object) -> str | None:
    """Return the codes at the beginning of a reply, such as `550 5.1.1`, or None if it begins with none."""
    if isinstance(reply, bool) or not isinstance(reply, _REPLY):
        return None
    match = _CODES.match(str(reply)[:100])
    return " ".join(filter(None, match.groups())) or None if match else None
